"""`tritonclient[http]` against a server: `python triton.py PORT FACTS`. Runs in .venv-clients; exits 0 when all holds.

FACTS is JSON: `columns` of the model `mixed` by feature, `matrix` for `numbers`, and the native `probability` of each.
"""

import json
import sys

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

KINDS = {"age": "FP64", "balance": "FP64", "plan": "BYTES", "region": "BYTES", "autopay": "BOOL", "visits": "FP64"}
NUMPY = {"FP64": np.float64, "BYTES": object, "BOOL": bool}


def of_features(columns, binary):
    inputs = []
    for name, values in columns.items():
        array = np.array(values, dtype=NUMPY[KINDS[name]])
        inputs.append(triton.InferInput(name, list(array.shape), KINDS[name]))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


def of_matrix(matrix, kind, dtype, binary):
    array = np.array(matrix, dtype=dtype)
    tensor = triton.InferInput("input", list(array.shape), kind)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


def check_infer(client, facts):
    wanted = facts["mixed"]["probability"]
    for binary_in in (True, False):
        for outputs in (
            None,
            [triton.InferRequestedOutput("probability", binary_data=True)],
            [triton.InferRequestedOutput("probability", binary_data=False), triton.InferRequestedOutput("prediction")],
        ):
            for sent, accepted in ((None, None), ("gzip", "gzip"), ("deflate", "deflate"), (None, "gzip")):
                result = client.infer(
                    "mixed",
                    of_features(facts["mixed"]["columns"], binary_in),
                    outputs=outputs,
                    request_id="mine",
                    request_compression_algorithm=sent,
                    response_compression_algorithm=accepted,
                    query_params={"test_1": 1},
                    headers={"x-unit": "u"},
                )
                np.testing.assert_allclose(result.as_numpy("probability"), wanted, atol=1e-6)
                answer = result.get_response()
                assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "mixed", "1"), answer
                if outputs is None or len(outputs) == 2:
                    labels = [
                        label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("prediction")
                    ]
                    assert labels == ["yes" if value > 0.5 else "no" for value in wanted]
                else:
                    assert result.as_numpy("prediction") is None
    for kind, dtype in (("FP64", np.float64), ("FP32", np.float32)):
        answers = []
        for binary in (True, False):
            result = client.infer(
                "numbers", of_matrix(facts["numbers"]["matrix"], kind, dtype, binary), timeout=30_000_000
            )
            answers.append(result.as_numpy("prediction"))
        assert answers[0].tolist() == answers[1].tolist(), kind
        if kind == "FP64":
            np.testing.assert_allclose(answers[0], facts["numbers"]["prediction"], atol=1e-5)
    pending = [
        client.async_infer("numbers", of_matrix(facts["numbers"]["matrix"], "FP64", np.float64, True)) for _ in range(4)
    ]
    for one in pending:
        np.testing.assert_allclose(one.get_result().as_numpy("prediction"), facts["numbers"]["prediction"], atol=1e-5)


def check_versions(client, facts):
    inputs = of_features(facts["mixed"]["columns"], True)
    other = client.infer("mixed", inputs, model_version="2")
    np.testing.assert_allclose(other.as_numpy("probability"), facts["mixed"]["challenger"], atol=1e-6)
    assert other.get_response()["model_version"] == "2"
    assert client.is_model_ready("mixed", "2")
    assert not client.is_model_ready("mixed", "9")


def check_what_is_told(client, _):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mixed")
    assert not client.is_model_ready("none")
    server = client.get_server_metadata()
    assert server["name"] == "coppice"
    assert {"binary_tensor_data", "statistics", "model_repository"} <= set(server["extensions"])
    told = client.get_model_metadata("mixed")
    assert {tensor["name"]: tensor["datatype"] for tensor in told["inputs"]} == KINDS
    assert told["versions"] == ["1", "2"]
    assert client.get_model_metadata("numbers")["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}]
    assert client.get_model_config("numbers")["input"] == [{"name": "input", "data_type": "TYPE_FP64", "dims": [4]}]
    index = {(model["name"], model["version"]): model["state"] for model in client.get_model_repository_index()}
    assert index == {("mixed", "1"): "READY", ("mixed", "2"): "READY", ("numbers", "1"): "READY"}


def check_statistics(client, facts):
    def count():
        (told,) = client.get_inference_statistics("mixed", "1")["model_stats"]
        assert told["inference_stats"]["success"]["count"] == told["inference_count"]
        return told["inference_count"]

    before = count()
    client.infer("mixed", of_features(facts["mixed"]["columns"], True))
    assert count() - before == len(facts["mixed"]["probability"])
    assert len(client.get_inference_statistics("numbers")["model_stats"]) == 1
    assert len(client.get_inference_statistics()["model_stats"]) == 3


def refused(status, words, ask):
    with pytest.raises(InferenceServerException) as told:
        ask()
    assert told.value.status() == str(status), told.value
    assert words in told.value.message(), told.value


def check_errors(client, facts):
    inputs = of_features(facts["mixed"]["columns"], True)
    refused(404, "Request for unknown model: 'none' is not found", lambda: client.infer("none", inputs))
    refused(
        404, "Request for unknown model: 'mixed' version 9", lambda: client.infer("mixed", inputs, model_version="9")
    )
    refused(404, "Request for unknown model", lambda: client.get_model_metadata("none"))
    refused(404, "Request for unknown model", lambda: client.get_inference_statistics("none"))
    refused(400, "visits: the column is missing", lambda: client.infer("mixed", inputs[:-1]))
    refused(
        400, "unexpected output 'x'", lambda: client.infer("mixed", inputs, outputs=[triton.InferRequestedOutput("x")])
    )
    refused(400, "routes", lambda: client.load_model("mixed"))
    refused(400, "routes", lambda: client.unload_model("mixed"))
    refused(
        400,
        "classification",
        lambda: client.infer("mixed", inputs, outputs=[triton.InferRequestedOutput("probability", class_count=2)]),
    )
    old = dict(facts["mixed"]["columns"], age=[1000.0] * len(facts["mixed"]["probability"]))
    refused(400, "row 0: age", lambda: client.infer("mixed", of_features(old, True)))
    wide = of_matrix([[1.0, 2.0]], "FP64", np.float64, True)
    refused(400, "rows of 4 numbers", lambda: client.infer("numbers", wide))


def main(port, facts):
    client = triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)
    for check in (check_infer, check_versions, check_what_is_told, check_statistics, check_errors):
        check(client, facts)
    client.close()


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        main(int(sys.argv[1]), json.load(file))
