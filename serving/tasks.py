"""What a model of each task answers: a row's scores as JSON, and the JSON as a schema.

    binary       {"prediction": the label, "probability": of the positive class}
    multiclass   {"prediction": the label, "probabilities": {label: p, ...}}      the first of the largest; in class order
    multilabel   {"prediction": [name, ...], "probabilities": {name: p, ...}}     the names above the threshold, may be none
    regression   {"prediction": 12.3}, or of several outputs {"prediction": {name: value, ...}}
    ranking      as regression
    outlier      {"prediction": "outlier" or "inlier", "score": x}                outlier: below 0, as scikit-learn says it

Then come `model_version`, `arm` and `request_id`. Numbers are spelled so that they read back as the very float64.

A score that is infinite (an exp link overflows) is no answer here: JSON cannot carry it, and null would read as a missing
value. The arm falls back to the champion as if it had failed, and the champion answers 500; the log keeps the score, so
that it differs from a failure, whose score is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compile.bundle import Manifest
from serving.answers import Encode, Openings, Spell, Wording, spelled, spelling_encoder, worded_encoder, wording
from serving.errors import RoutesRefused

OUTLIER, INLIER = "outlier", "inlier"
NUMBER = {"type": "number"}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


def encoder(manifest: Manifest, *, arm: str, generation: int, fallback_from: str = "") -> Encode:
    """The encoder of the arm. Raises RoutesRefused where the manifest's outputs do not fit its task."""
    marks: dict[str, Any] = {"version": manifest.version, "arm": arm, "generation": generation}
    marks["fallback_from"] = fallback_from
    words = wording_of(manifest, **marks)
    return spelling_encoder(_SPELLERS[manifest.task](manifest), **marks) if words is None else worded_encoder(words)


def wording_of(manifest: Manifest, **marks: Any) -> Wording | None:
    """The templates of the arm's answers, where its model has one output; `marks` as `wording` takes them."""
    _refuse_unfit(marks["arm"], manifest)
    openings = _openings(manifest)
    return None if openings is None else wording(openings, **marks)


def speller(manifest: Manifest) -> Spell:
    """How a row's scores are spelled in an answer of many rows: as alone, up to the last field that is the row's own."""
    openings = _openings(manifest)
    return _SPELLERS[manifest.task](manifest) if openings is None else openings.spell


def row_schema(manifest: Manifest) -> dict[str, Any]:
    """The JSON schema of a row's own fields."""
    properties = _PROPERTIES[manifest.task](manifest)
    return {"type": "object", "required": list(properties), "properties": properties}


def answer_schema(manifest: Manifest, arms: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of what `encoder` makes."""
    properties = _PROPERTIES[manifest.task](manifest) | {
        "model_version": {"type": "string"},
        "arm": {"type": "string", "enum": list(arms)},
        "request_id": {"type": "string"},
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def refuse_other_answers(name: str, manifest: Manifest, champion: Manifest) -> None:
    """Raises RoutesRefused where the two would not answer in the same words: task, outputs and classes, in their order."""
    for what in ("task", "outputs", "classes"):
        theirs, ours = getattr(manifest, what), getattr(champion, what)
        if theirs != ours:
            told = [value if isinstance(value, str) else ", ".join(value) or "none" for value in (theirs, ours)]
            raise RoutesRefused(
                f"{name}: answers otherwise than the champion ({what}: {told[0]}; the champion's: {told[1]}); "
                "serve it as another model"
            )


def _refuse_unfit(arm: str, manifest: Manifest) -> None:
    """Raises RoutesRefused for a bundle whose manifest contradicts itself: every request would fail on it."""
    outputs, classes = len(manifest.outputs), len(manifest.classes)
    fits = {"binary": outputs == 1 and classes == 2, "multiclass": outputs == classes >= 2, "outlier": outputs == 1}
    if not fits.get(manifest.task, outputs >= 1):
        raise RoutesRefused(
            f"{arm}: a {manifest.task} model of {outputs} outputs and {classes} classes can't be served"
        )
    for names in (manifest.outputs, manifest.classes):
        if len(set(names)) != len(names):
            raise RoutesRefused(f"{arm}: two outputs or classes of the model have one name")


def _openings(manifest: Manifest) -> Openings | None:
    if manifest.task == "binary":
        texts = [b'{"prediction":%b,"probability":' % spelled(label) for label in manifest.classes]
        return Openings.of(texts, "above", manifest.threshold)
    if manifest.task == "outlier":
        return Openings.of([b'{"prediction":%b,"score":' % spelled(word) for word in (INLIER, OUTLIER)], "below")
    if manifest.task in ("regression", "ranking") and len(manifest.outputs) == 1:
        return Openings.of([b'{"prediction":'])
    return None


def _multiclass(manifest: Manifest) -> Spell:
    openings = [b'{"prediction":%b,"probabilities":' % spelled(label) for label in manifest.classes]
    probabilities = _numbers_of(manifest.classes)

    def spell(scores: tuple[float, ...]) -> bytes:
        return openings[scores.index(max(scores))] + probabilities(scores)

    return spell


def _multilabel(manifest: Manifest) -> Spell:
    names = [spelled(name) for name in manifest.outputs]
    probabilities = _numbers_of(manifest.outputs)
    threshold = manifest.threshold

    def spell(scores: tuple[float, ...]) -> bytes:
        present = b",".join([name for name, score in zip(names, scores, strict=True) if score > threshold])
        return b'{"prediction":[%b],"probabilities":%b' % (present, probabilities(scores))

    return spell if len(names) > 1 else lambda score: spell((score,))


def _values(manifest: Manifest) -> Spell:
    values = _numbers_of(manifest.outputs)
    return lambda scores: b'{"prediction":' + values(scores)


_SPELLERS: dict[str, Callable[[Manifest], Spell]] = {
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _values,
    "ranking": _values,
}


def _numbers_of(names: Sequence[str]) -> Callable[[tuple[float, ...]], bytes]:
    """The JSON object of these names and a row's scores, by one format call of all numbers."""
    keys = [spelled(name).decode().replace("%", "%%") for name in names]
    text = "{" + ",".join(f"{key}:%r" for key in keys) + "}"
    return lambda scores: (text % scores).encode()


def _object(names: Sequence[str], each: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(names), "properties": dict.fromkeys(names, each)}


def _binary_properties(manifest: Manifest) -> dict[str, Any]:
    return {"prediction": {"type": "string", "enum": list(manifest.classes)}, "probability": PROBABILITY}


def _multiclass_properties(manifest: Manifest) -> dict[str, Any]:
    label = {"type": "string", "enum": list(manifest.classes)}
    return {"prediction": label, "probabilities": _object(manifest.classes, PROBABILITY)}


def _multilabel_properties(manifest: Manifest) -> dict[str, Any]:
    present = {"type": "array", "uniqueItems": True, "items": {"type": "string", "enum": list(manifest.outputs)}}
    return {"prediction": present, "probabilities": _object(manifest.outputs, PROBABILITY)}


def _values_properties(manifest: Manifest) -> dict[str, Any]:
    return {"prediction": NUMBER if len(manifest.outputs) == 1 else _object(manifest.outputs, NUMBER)}


def _outlier_properties(_: Manifest) -> dict[str, Any]:
    return {"prediction": {"type": "string", "enum": [OUTLIER, INLIER]}, "score": NUMBER}


_PROPERTIES: dict[str, Callable[[Manifest], dict[str, Any]]] = {
    "binary": _binary_properties,
    "multiclass": _multiclass_properties,
    "multilabel": _multilabel_properties,
    "regression": _values_properties,
    "ranking": _values_properties,
    "outlier": _outlier_properties,
}
