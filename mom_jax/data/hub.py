"""Data sets of the Hugging Face hub, streamed."""

import dataclasses
import os
from collections.abc import Iterator

from mom_jax.data.json_documents import OnError
from mom_jax.data.opening import reason
from mom_jax.errors import InputError, need


@dataclasses.dataclass(frozen=True)
class HubSource:
    """One of the ``count`` files of a split of a Hugging Face dataset, streamed."""

    name: str
    dataset: str
    subset: str | None
    split: str
    index: int
    count: int
    size: None = None  # unknown before it is read

    def documents(self, text_field: str, on_error: OnError) -> Iterator[str]:
        """The rows' text; raises `InputError` when the hub cannot be reached or the field is missing."""
        rows = _stream(self.dataset, self.subset, self.split).shard(num_shards=self.count, index=self.index)
        try:
            for number, row in enumerate(rows):
                if text_field not in row:
                    raise InputError("text_field", text_field, f"{self.name} has the columns {', '.join(row)}")
                if row[text_field] is not None and not isinstance(row[text_field], str):
                    on_error(InputError("text_field", text_field, f"row {number} of {self.name} is not text"))
                elif row[text_field]:
                    yield row[text_field]
        except InputError:
            raise
        except Exception as error:  # network, decompression and format errors of many libraries
            raise InputError("path", self.name, f"reading stopped ({reason(error)}); run again to resume") from error


def hub_sources(spec: str, field: str) -> list[HubSource]:
    """The files of ``NAME[:config][:split]``.

    Raises:
        InputError: another form, no package ``datasets``, no such data set, or no network.
    """
    need("datasets", "hf", field, f"hf:{spec}", "the package datasets")
    dataset, subset, split, *rest = [*spec.split(":"), "", ""]
    if not dataset or any(rest):
        raise InputError(field, f"hf:{spec}", "must be hf:NAME[:config][:split]")
    if os.path.exists(dataset):  # the package would read that instead
        raise InputError(
            field, f"hf:{spec}", f"names the hub, but {dataset} is a local path; give it without hf:, or rename it"
        )
    subset, split = subset or None, split or "train"
    count = _stream(dataset, subset, split).num_shards
    stem = ":".join(["hf", dataset, subset or "", split])
    return [HubSource(f"{stem}#{i:05d}", dataset, subset, split, i, count) for i in range(count)]


def _stream(dataset: str, subset: str | None, split: str):
    import datasets  # an optional package, and slow to import
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # what goes wrong reaches us as exceptions
    try:
        return datasets.load_dataset(dataset, subset, split=split, streaming=True)
    except Exception as error:  # the hub's errors share no base class
        remedy = (
            f"the Hugging Face hub gave: {reason(error)}; without a network, run mom-jax data prepare where there "
            "is one, copy the folder, and give it as path"
        )
        raise InputError("path", f"hf:{dataset}:{subset or ''}:{split}", remedy) from error
