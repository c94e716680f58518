"""`kserve`'s REST client against a server, by both of its protocols: `python kserve_both.py PORT FACTS`. As `triton.py`."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from triton import KINDS, NUMPY


async def check_v2(base, facts):
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=20)) as client:
        assert await client.is_server_live(base)
        assert await client.is_server_ready(base)
        assert await client.is_model_ready(base, "mixed")
        for binary in (True, False):
            inputs = []
            for name, values in facts["mixed"]["columns"].items():
                array = np.array(values, dtype=NUMPY[KINDS[name]])
                inputs.append(InferInput(name, list(array.shape), KINDS[name]))
                inputs[-1].set_data_from_numpy(array, binary_data=binary)
            asked = InferRequest(model_name="mixed", infer_inputs=inputs, request_id="mine")
            answer = await client.infer(base, asked, model_name="mixed")
            told = {output.name: output.as_numpy() for output in answer.outputs}
            np.testing.assert_allclose(told["probability"], facts["mixed"]["probability"], atol=1e-6)
            assert (answer.id, answer.model_name) == ("mine", "mixed")


async def check_v1(base, facts):
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=20)) as client:
        assert await client.is_server_live(base)
        assert await client.is_model_ready(base, "mixed")
        columns = facts["mixed"]["columns"]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for instances in (rows, [list(row.values()) for row in rows]):
            answer = await client.infer(base, {"instances": instances}, model_name="mixed")
            np.testing.assert_allclose(answer["predictions"], facts["mixed"]["probability"], atol=1e-6)
        answer = await client.infer(base, {"instances": facts["numbers"]["matrix"]}, model_name="numbers")
        np.testing.assert_allclose(answer["predictions"], facts["numbers"]["prediction"], atol=1e-5)


if __name__ == "__main__":
    base = f"http://127.0.0.1:{sys.argv[1]}"
    with open(sys.argv[2], encoding="utf-8") as file:
        facts = json.load(file)
    asyncio.run(check_v2(base, facts))
    asyncio.run(check_v1(base, facts))
