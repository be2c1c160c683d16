"""Which block reads which: traced from one call of the denoiser, so that no family needs a topology table."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from dipgo.errors import DipgoError, first_line
from dipgo.schedule import Schedule

INPUT = -1  # stands for the denoiser's own inputs among the sites that a tensor was made from
NOTHING: frozenset[int] = frozenset()
DELTA = ":delta"
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
WHOLE_CALL = ""  # the denoiser itself as the one gated module


@dataclass(frozen=True)
class Site:
    """Where a denoiser is gated, written as `module` or `module:delta`."""

    module: str
    """Dotted path. "" is the denoiser itself, so that its one site is a whole call."""
    delta: bool = False
    """False: a reused site gives its last output, as in the paper, and frees all that only this module needed. True:
    it gives what its residual branches added last, on top of this call's streams, so that earlier blocks run."""

    @classmethod
    def parse(cls, text: str) -> Site:
        return cls(text.removesuffix(DELTA), text.endswith(DELTA))

    @property
    def kind(self) -> str:
        """The last name in its path that is no number, such as "attn1" or "resnets"."""
        return next((part for part in reversed(self.module.split(".")) if not part.isdigit()), self.module)

    def __str__(self) -> str:
        return self.module + DELTA * self.delta


class Stream(NamedTuple):
    """The input of a block that one of its outputs continues: the block adds to it."""

    position: int
    name: str

    def of(self, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Return the input in a call of the block, or None where the call has no such input."""
        return args[self.position] if self.position < len(args) else kwargs.get(self.name)


@dataclass(frozen=True)
class Execution:
    """What a schedule makes of every site in every call. The first three exclude each other."""

    computed: np.ndarray
    """Bool [calls, sites]: the site runs."""
    reused: np.ndarray
    """Bool [calls, sites]: the site does not run, and its last values stand in."""
    dead: np.ndarray
    """Bool [calls, sites]: the site does not run, and nobody reads it."""
    entered: np.ndarray
    """Bool [calls]: calls in which the denoiser's forward runs at all. In the others its output is held, for free."""

    @property
    def computed_calls(self) -> np.ndarray:
        """Bool [calls]: calls in which any site is computed."""
        return self.computed.any(axis=1)


@dataclass(frozen=True)
class BlockGraph:
    """The data flow between sites in one denoiser call. `print` shows it."""

    sites: tuple[str, ...]
    """The names of the sites in order of execution, so that every edge points forward."""
    reads: tuple[frozenset[int], ...]
    """For each site, the indices of the sites whose output it takes in."""
    output_reads: frozenset[int]
    """The indices of the sites whose output the denoiser's own output is made from."""
    bypassed: bool = False
    """Whether the denoiser's inputs reach its output around the sites, too (a final layer that is told the timestep, a
    residual stream). Then a call whose sites are all reused still has a new output."""
    streams: tuple[tuple[Stream, ...], ...] = field(default=(), compare=False)
    """For each site of unit "delta" the streams of its output's tensors, one each; none for the other sites."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", self.streams or ((),) * len(self.sites))
        lost = [site for site, streams in zip(self.sites, self.streams, strict=True) if DELTA in site and not streams]
        if lost:
            raise DipgoError(f"the graph does not say what {lost[0]} adds to; trace it again")

    @property
    def unread(self) -> np.ndarray:
        """Bool [sites]: nobody reads the site's output where everything is computed."""
        return self.execute(Schedule.dense(self.sites, 1)).dead[0]

    def __str__(self) -> str:
        """One line a site: its index, its name and the indices of the sites that it reads."""
        names = [f"{index:>3}  {site or 'the whole call'}" for index, site in enumerate(self.sites)]
        width = max(map(len, names), default=0)
        sources = [" ".join(map(str, sorted(who))) or "inputs" for who in self.reads]
        output = " ".join(map(str, sorted(self.output_reads))) + ", and inputs around the sites" * self.bypassed
        lines = [f"{name:<{width}}  <- {source}" for name, source in zip(names, sources, strict=True)]
        return "\n".join([*lines, f"{'     output':<{width}}  <- {output}"])

    def execute(self, schedule: Schedule) -> Execution:
        """Return which blocks run in which call (section 3.2).

        A block is needed in a call if something that is computed there reads it: another block, or the output of the
        denoiser. It is also needed if the next call reuses its value and needs it. A block that is not needed is dead
        and does not run, though the schedule does not name it.
        """
        self.check(schedule)
        shape = schedule.reuse.shape
        computed, reused = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        carried: set[int] = set()  # sites whose value in this call the next call reuses
        for call in reversed(range(schedule.calls)):
            needed = carried | self.output_reads
            carried = set()
            for site in reversed(range(len(self.sites))):
                if site not in needed:
                    continue
                if schedule.reuse[call, site]:
                    reused[call, site] = True
                    carried.add(site)
                else:
                    computed[call, site] = True
                    needed |= self.reads[site]
        # A call in which everything is reused still has a new output where the values are not held.
        entered = computed.any(axis=1) | self.bypassed | (schedule.coefficients is not None)
        return Execution(computed, reused, ~(computed | reused), entered)

    def check(self, schedule: Schedule) -> None:
        """Raise if the schedule was made for other sites than this graph's."""
        if schedule.sites != self.sites:
            odd = sorted(set(schedule.sites) ^ set(self.sites))
            what = f"it differs in {', '.join(odd[:4])}" if odd else "the order differs"
            raise DipgoError(
                f"schedule is for another denoiser: {len(schedule.sites)} sites against {len(self.sites)} here; {what}"
            )


def trace_graph(denoiser: nn.Module, sites: Sequence[str], inputs: Mapping[str, Any]) -> BlockGraph:
    """Call `denoiser(**inputs)` once, without gradients, and return which site reads whose output.

    Every tensor carries the set of sites that it was made from. A site's outputs carry that site alone, and for a
    delta their stream's sites as well. So operations between blocks (concatenation, addition, a write into a part of a
    tensor) need no special care.

    Raises `DipgoError` where the sites do not fit the denoiser: a name that it lacks, a module that it never calls or
    calls twice, another order, an output that nobody reads, a delta of a block whose outputs continue none of its
    inputs, or a module that changes its inputs in place for others.
    """
    graph = follow_sites(denoiser, sites, inputs)
    unread = [site for site, dead in zip(graph.sites, graph.unread, strict=True) if dead]
    if unread:
        raise DipgoError(
            f"nobody reads the output of {', '.join(unread)} where everything is computed; leave it out of the sites"
        )
    return graph


def follow_sites(denoiser: nn.Module, sites: Sequence[str], inputs: Mapping[str, Any]) -> BlockGraph:
    """Return the graph as `trace_graph` does, also where nobody reads the output of some sites."""
    parsed = [Site.parse(site) for site in sites]
    if len({site.module for site in parsed}) < len(parsed):
        raise DipgoError("a module can be a site once, by its output or its delta; drop one of the two")
    modules = [resolve(denoiser, site.module) for site in parsed]
    follow, reads, runs, handles = _Follow(sites), {}, Counter(), []
    streams = _Streams(follow)

    def before(index: int):
        def hook(module, args, kwargs):
            runs[sites[index]] += 1
            reads[index] = follow.origins((args, kwargs)) - {INPUT}
            streams.enter(index, module, args, kwargs)
            follow.enter(index, (args, kwargs))

        return hook

    def after(index: int):
        def hook(module, args, output):
            output = tree_map_only(torch.Tensor, torch.Tensor.detach, output)
            outputs = _tensors(output)
            follow.leave(outputs, streams.leave(index, module, outputs, parsed[index].delta))
            return output

        return hook

    for index, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(before(index), with_kwargs=True))
        handles.append(module.register_forward_hook(after(index)))
    follow.mark(inputs, frozenset({INPUT}))
    try:
        with follow:
            output_reads = follow.origins(call_once(denoiser, inputs))
    finally:
        for handle in handles:
            handle.remove()
    unseen = [site for site in sites if site not in runs]
    if unseen:
        raise DipgoError(f"the denoiser never calls {', '.join(unseen)}: not a site of this family")
    for site, count in runs.items():
        if count > 1:
            raise DipgoError(f"{site} runs {count} times in a call; a site runs once: take the module around it")
    if any(read >= index for index, who in reads.items() for read in who):
        raise DipgoError("sites must be listed in order of execution")
    reads_in_order = tuple(reads[index] for index in range(len(sites)))
    return BlockGraph(tuple(sites), reads_in_order, output_reads - {INPUT}, INPUT in output_reads, streams.chosen())


class _Follow(TorchDispatchMode):
    """Knows the sites that each tensor was made from while a denoiser runs inside.

    A tensor is marked with its sites when an operation makes it. A write in place reaches every tensor that shares the
    memory: it is noted by storage, and counts for the tensors that were marked before it.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = sites
        self.now = 0
        self.marks = WeakTensorKeyDictionary()  # tensor -> its sites, and when it was marked
        self.writes: dict[int, list[tuple[int, frozenset[int], int | None]]] = defaultdict(list)
        self.inside: list[tuple[int, set[int]]] = []  # the sites that run, with the memory of their inputs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        who = self.origins((args, kwargs))
        if self.inside:
            who |= {self.inside[-1][0]}
        out = func(*args, **kwargs)
        self.now += 1
        written = _tensors([args[at] if at < len(args) else kwargs.get(name) for at, name in _written(func)])
        for tensor in written:
            self._write(tensor, who)
        self.mark([tensor for tensor in _tensors(out) if not any(tensor is old for old in written)], who)
        return out

    def _write(self, tensor: torch.Tensor, who: frozenset[int]) -> None:
        """Note a write in place, and by which site if the tensor was given to it from outside."""
        storage, site = _storage(tensor), self.inside[-1] if self.inside else None
        self.writes[storage].append((self.now, who, site[0] if site and storage in site[1] else None))

    def mark(self, values: Any, who: frozenset[int]) -> None:
        """Say which sites all tensors in `values` were made from."""
        for tensor in _tensors(values):
            self.marks[tensor] = who, self.now

    def origins(self, values: Any) -> frozenset[int]:
        """Return the sites that the tensors in `values` were made from."""
        who = NOTHING
        for tensor in _tensors(values):
            marked, since = self.marks.get(tensor, (NOTHING, -1))
            who |= marked
            for when, writers, site in self.writes.get(_storage(tensor), ()):
                if when > since:
                    who |= writers
                    if site is not None and site not in [running for running, _ in self.inside]:
                        raise DipgoError(
                            f"{self.sites[site]} changes one of its inputs in place, which is read afterwards; reused, "
                            "it would not: take the module around it"
                        )
        return who

    def enter(self, site: int, inputs: Any) -> None:
        """A site begins to run."""
        self.inside.append((site, {_storage(tensor) for tensor in _tensors(inputs)}))

    def leave(self, outputs: Sequence[torch.Tensor], streams: Sequence[frozenset[int]]) -> None:
        """A site has run. Its outputs carry it and the sites of their streams. They must be new tensors, so that an
        input which a block hands on keeps its own mark."""
        site, _ = self.inside.pop()
        self.now += 1
        for output, stream in zip(outputs, streams, strict=True):
            self.mark(output, stream | {site})


class _Streams:
    """Finds which input each output of a block continues, while a denoiser is traced.

    It is the input of the output's shape. Where several have that shape, it is the one that has the name under which
    such a block's output is handed to later blocks.
    """

    def __init__(self, follow: _Follow) -> None:
        self.follow = follow
        self.inputs: dict[int, dict[Stream, tuple[torch.Size, frozenset[int]]]] = {}  # by site: shape and origins
        self.fits: dict[int, list[list[Stream]]] = {}  # by site: the inputs of each output's shape
        self.kinds: dict[int, type[nn.Module]] = {}  # by site: the block's class
        self.made = WeakTensorKeyDictionary()  # a block's output -> the block's class, and which output it is
        self.names: dict[Any, set[str]] = defaultdict(set)  # the names under which later blocks take such outputs

    def enter(self, site: int, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """A site begins to run on these inputs."""
        given = self.inputs[site] = {}
        for position, name in enumerate(inspect.signature(module.forward).parameters):
            stream = Stream(position, name)
            tensor = stream.of(args, kwargs)
            if isinstance(tensor, torch.Tensor):
                given[stream] = tensor.shape, self.follow.origins(tensor)
                if tensor in self.made:
                    self.names[self.made[tensor]].add(name)

    def leave(self, site: int, module: nn.Module, outputs: Sequence[torch.Tensor], delta: bool) -> list[frozenset[int]]:
        """A site has given these outputs. Return the sites that their streams come from: none but for a delta."""
        for place, output in enumerate(outputs):
            self.made[output] = type(module), place
        if not delta:
            return [NOTHING] * len(outputs)
        self.kinds[site] = type(module)
        self.fits[site] = [self._fitting(site, module, output.shape) for output in outputs]
        return [NOTHING.union(*(self.inputs[site][stream][1] for stream in fits)) for fits in self.fits[site]]

    def _fitting(self, site: int, module: nn.Module, shape: torch.Size) -> list[Stream]:
        """Return the inputs of this shape, up to the channels where the module has a convolution that changes them."""
        skip = slice(1, 2 if getattr(module, "conv_shortcut", None) is not None else 1)

        def key(shape: torch.Size) -> list[int]:
            sizes = list(shape)
            del sizes[skip]
            return sizes

        fits = [stream for stream, (given, _) in self.inputs[site].items() if key(given) == key(shape)]
        if not fits:
            raise DipgoError(
                f"{self.follow.sites[site]} is no delta: the block's output {tuple(shape)} has the shape of none of "
                f"its inputs; take its output, {Site.parse(self.follow.sites[site]).module}"
            )
        return fits

    def chosen(self) -> tuple[tuple[Stream, ...], ...]:
        """Return the streams of every site, once all have run."""
        return tuple(tuple(self._chosen(site)) for site in range(len(self.follow.sites)))

    def _chosen(self, site: int) -> list[Stream]:
        fits = self.fits.get(site, [])
        known = [
            [stream for stream in streams if stream.name in self.names[self.kinds[site], place]] or streams
            for place, streams in enumerate(fits)
        ]
        sure = {streams[0] for streams in known if len(streams) == 1}
        if len(fits) > 1:
            known = [streams if len(streams) == 1 else [s for s in streams if s not in sure] for streams in known]
            if any(len(streams) != 1 for streams in known):
                raise DipgoError(
                    f"{self.follow.sites[site]} is no delta here: its outputs and its inputs are of one shape, and "
                    "nothing tells which belong together; trace it at another size, or take its output"
                )
        return [streams[0] for streams in known]


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operator writes into, by position and name."""
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema else ()
    return tuple((i, form.name) for i, form in enumerate(arguments) if form.alias_info and form.alias_info.is_write)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    """The identity of the memory that a tensor is a view of."""
    return tensor.untyped_storage()._cdata


def call_once(denoiser: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Return what `denoiser(**inputs)` gives, without gradients; raise `DipgoError` where it cannot take the inputs."""
    try:
        with torch.no_grad():
            return denoiser(**inputs)
    except DipgoError:
        raise
    except Exception as error:
        raise DipgoError(
            f"{type(denoiser).__name__} does not run on these inputs: {first_line(error)}; give the inputs of one call "
            "as its pipeline makes it"
        ) from error


def named_inputs(denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call `denoiser(*args, **kwargs)` by the names of its forward's parameters.

    Raises `DipgoError` where a positional argument has no name.
    """
    names = [p.name for p in inspect.signature(denoiser.forward).parameters.values() if p.kind in POSITIONAL]
    if len(args) > len(names):
        raise DipgoError(
            f"{type(denoiser).__name__} takes {len(args)} positional inputs, but its forward names {len(names)}; "
            "write them out as parameters of its forward"
        )
    return {**dict(zip(names, args, strict=False)), **kwargs}


def resolve(denoiser: nn.Module, module: str) -> nn.Module:
    """The module at a dotted path, or one clear line."""
    try:
        return denoiser.get_submodule(module)
    except AttributeError:
        raise DipgoError(f"{type(denoiser).__name__} has no module {module!r}: site of another family?") from None
