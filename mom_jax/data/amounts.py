"""How much text is on each side, in one line for people."""

import dataclasses
from collections.abc import Iterable

from mom_jax.data.plan import Plan
from mom_jax.data.shards import PreparedData, ShardInfo
from mom_jax.data.sources import Source

_RULES = {
    "held_out_path": "as held_out_path says",
    "names": "as the files' names say",
    "files": "whole files, by their names' hashes",
    "ends": "the end of each file",
    "documents": "documents, by their texts' hashes",
}


@dataclasses.dataclass(frozen=True)
class Amount:
    """Text of some shards."""

    documents: int
    text_bytes: int
    tokens: int
    skipped: int
    skipped_example: str

    @classmethod
    def of(cls, infos: Iterable[ShardInfo]) -> "Amount":
        """The sum over shards."""
        infos = list(infos)
        example = next((info.skipped_example for info in infos if info.skipped), "")
        fields = ("documents", "text_bytes", "tokens", "skipped")
        return cls(**{field: sum(getattr(info, field) for info in infos) for field in fields}, skipped_example=example)


def describe_amounts(train: Amount, held_out: Amount, rule: str, what: str = "text") -> list[str]:
    """A line about both sides, and one about what was skipped."""
    share = f"{held_out.text_bytes / max(train.text_bytes + held_out.text_bytes, 1):.1%}"
    how = ", ".join(filter(None, [share, _RULES.get(rule)]))
    lines = [f"{what}: to train on {_amount(train)}; held out {_amount(held_out)} ({how})"]
    skipped, example = train.skipped + held_out.skipped, train.skipped_example or held_out.skipped_example
    return lines + ([f"skipped as broken: {skipped:,} (the first: {example})"] if skipped else [])


def describe_data(data: PreparedData) -> list[str]:
    """`describe_amounts` of opened shards."""
    train, held_out = (Amount.of(shard.info for shard in side.shards) for side in (data.train, data.held_out))
    return describe_amounts(train, held_out, data.rule)


def describe_plan(planned: Plan, held_out_fraction: float) -> list[str]:
    """What preparing would do, in a few lines."""
    sides = planned.split
    shards = sum(len(unit.shards) for unit in planned.units)
    if sides.rule in ("documents", "ends"):
        text = f"{_sources(sides.train)}, of which about {held_out_fraction:.1%} of the text is held out"
    else:
        some = ", ".join(source.name for source in sides.held_out[:3]) + ", ..." * (len(sides.held_out) > 3)
        text = f"to train on {_sources(sides.train)}; held out {_sources(sides.held_out)} ({some})"
    return [
        f"text: {text}; {_RULES[sides.rule]}",
        *sides.notes,
        f"would be {_count(shards, 'shard')}; nothing was written",
    ]


def _amount(amount: Amount) -> str:
    return ", ".join(
        [_count(amount.documents, "document"), _count(amount.text_bytes, "byte"), _count(amount.tokens, "token")]
    )


def _sources(sources: list[Source]) -> str:
    sizes = [source.size for source in sources]
    known = f", {_count(sum(size or 0 for size in sizes), 'byte')} as stored" if None not in sizes else ", streamed"
    return _count(len(sources), "file") + known


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
