"""A shadow of a GPU for tests: tensors that say they are on `cuda` and hold real values on the CPU.

Unlike `FakeTensorMode` it computes, so that lengths, losses and weights are real. It raises on an operation that mixes
devices, and counts every time at which a program would wait for a GPU:

* a value is read: `item`, `tolist`, `bool`, a copy to the CPU;
* a shape depends on values: `nonzero`, a boolean index, `masked_select`, `unique`, `bincount`;
* a copy from the CPU blocks, or comes from memory that is not pinned;
* an event is waited for that lies behind the last wait.

A copy to the CPU that does not block may be read only once its event has been waited for. Kernels of Triton are not
launched: the operators of soft-DTW get their values from the CPU backend, and the launches are checked (`launches`).
What it cannot show: races between streams, memory, speed, numbers of other kernels. Autocast chooses operations as on
the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from laser_hf.ops.soft_dtw import operators, triton_backend

aten = torch.ops.aten
READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "_unique2", "unique_dim", "histogram"}
READS |= {"unique_consecutive", "multinomial", "_linalg_svd", "_linalg_eigh", "linalg_qr", "_linalg_check_errors"}
TESTS = Path(__file__).resolve().parent


class ShadowTensor(torch.Tensor):
    """A tensor that says it is on `place`, a CUDA device, with its values in `held`.

    For PyTorch's C++ part it is on the CPU: the engine of autograd refuses a device that is not there.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, place: torch.device):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )

    def __init__(self, held: torch.Tensor, place: torch.device):
        self.held, self.place = held, place

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return self.place.index

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def storage(self):
        return self.held.storage()

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, **kwargs):
        raise TypeError("can't convert a tensor on the shadow device to numpy")

    def cpu(self):
        return self.to("cpu")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on the shadow device outside of `shadow_device()`")

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)  # as torch.save stores what is on a GPU

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if hasattr(self, "_is_param") else copied
        return memo[id(self)]

    def __repr__(self, **kwargs):
        return f"ShadowTensor({tuple(self.shape)}, {self.place}, {self.held})"


class _Move(torch.autograd.Function):
    """`Tensor.to` between the CPU and the shadow device."""

    @staticmethod
    def forward(ctx, source, place, dtype, non_blocking, device):
        ctx.source, ctx.dtype, ctx.device = source.device, source.dtype, device
        return device.move(source, place, dtype, non_blocking)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.device.move(gradient, ctx.source, ctx.dtype, False), None, None, None, None


class Waits(Counter):
    """How often the program waited, by what and where: `{"item at laser_hf/...:12": 3}`."""

    def note(self, what: str) -> None:
        where = [
            frame for frame in traceback.extract_stack()
            if str(TESTS) not in frame.filename and "/torch/" not in frame.filename
        ]  # fmt: skip
        places = [[frame for frame in where if part in frame.filename][-1:] for part in ("laser_hf", "")]
        short = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}" for (frame,) in filter(None, places)]
        self[f"{what} at {' < '.join(dict.fromkeys(short))}"] += 1


class ShadowDevice(TorchDispatchMode):
    """Computes on the CPU what is on the shadow device.

    Attributes:
        waits: see `Waits`.
        launches: names of the kernels that were launched, and the device that was current.
    """

    def __init__(self, devices: int = 1):
        super().__init__()
        self.devices, self.current = devices, 0
        self.waits, self.launches = Waits(), []
        self.clock = itertools.count()
        self.reached = -1  # everything up to here is known to be done
        self.pinned: dict[int, torch.Tensor] = {}
        self.pending: dict[int, tuple[int, torch.Tensor]] = {}  # copies to the CPU under way

    def wait(self, what: str) -> None:
        """The program waits for all that was started."""
        self.waits.note(what)
        self.reached = next(self.clock)

    def placed(self, place) -> torch.device:
        """A device with its number."""
        place = torch.device(place)
        return torch.device("cuda", self.current) if place.type == "cuda" and place.index is None else place

    def move(self, source: torch.Tensor, place: torch.device, dtype: torch.dtype, non_blocking: bool) -> torch.Tensor:
        """A copy of `source` on another device."""
        held = source.held if isinstance(source, ShadowTensor) else source
        with torch.utils._python_dispatch._disable_current_modes():
            copied = held.detach().to(dtype, copy=True)
        self._count_copy(source, place, not non_blocking)
        if place.type == "cuda":
            return ShadowTensor(copied, place)
        if non_blocking:  # into pinned memory
            self.pinned[copied.untyped_storage().data_ptr()] = copied
            self.pending[copied.untyped_storage().data_ptr()] = (next(self.clock), copied)
        return copied

    def _count_copy(self, source: torch.Tensor, place: torch.device, blocking: bool) -> None:
        if source.device.type == place.type:
            return
        if blocking:
            self.wait(f"copy from {source.device.type}")
        elif source.device.type == "cpu" and not self._is_pinned(source):
            self.wait("copy from pageable memory")

    # ---- events ----

    def event(self):
        """Stands for `torch.cuda.Event`."""
        device = self

        class Event:
            def __init__(self, *args, **kwargs):
                self.time = -1

            def record(self, stream=None):
                self.time = next(device.clock)

            def synchronize(self):
                if self.time > device.reached:
                    device.wait("event")
                    device.reached = max(device.reached, self.time)

            def query(self):
                return self.time <= device.reached

        return Event

    # ---- operations ----

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        flat = tree_flatten((args, kwargs))[0]
        tensors = [one for one in flat if isinstance(one, torch.Tensor)]
        shadows = [one for one in tensors if isinstance(one, ShadowTensor)]
        for tensor in tensors:
            if not isinstance(tensor, ShadowTensor) and tensor.device.type == "cpu":
                self._check_read(tensor)
        if name == "_pin_memory":
            real = args[0].clone()
            self.pinned[real.untyped_storage().data_ptr()] = real
            return real
        if name == "is_pinned":
            return self._is_pinned(args[0])
        if func.namespace == "laser_hf":
            return self._soft_dtw(func, args, kwargs) if shadows else func(*args, **kwargs)
        target = self._target(func, name, args, kwargs, tensors, shadows)
        if not shadows and (target is None or target.type != "cuda"):
            return func(*args, **kwargs)
        if name == "_fused_sdp_choice":
            return 0  # plain arithmetic
        self._count(func, name, args, kwargs, shadows)
        real_args, real_kwargs = tree_map(self._unwrapped, (args, kwargs))
        found = func(*real_args, **real_kwargs)
        next(self.clock)
        return self._wrapped(func, args, kwargs, found, target)

    @staticmethod
    def _unwrapped(value):
        if isinstance(value, ShadowTensor):
            return value.held
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

    def _wrapped(self, func, args, kwargs, found, target):
        """Results on the device; of an operation in place, its argument itself."""
        arguments = func._schema.arguments
        given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
        written = [
            given.get(argument.name) for argument in arguments if argument.alias_info and argument.alias_info.is_write
        ]
        written = [one for one in tree_flatten(written)[0] if isinstance(one, torch.Tensor)]

        def wrap(value):
            if not isinstance(value, torch.Tensor):
                return value
            for one in written:
                if (one.held if isinstance(one, ShadowTensor) else one) is value:
                    return one
            return ShadowTensor(value, target) if target is not None and target.type == "cuda" else value

        return tree_map(wrap, found)

    def _target(self, func, name, args, kwargs, tensors, shadows):
        """The device of the result; raises where arguments are on several."""
        asked = kwargs.get("device")
        asked = None if asked is None else self.placed(asked)
        if not shadows:
            return asked
        found = {one.device for one in shadows}
        if name != "copy_":
            # A tensor without dimensions counts as a number. An index may be on the CPU: it is copied.
            others = [one for one in tensors if not isinstance(one, ShadowTensor) and one.dim()]
            if name in ("index", "index_put", "index_put_", "_unsafe_index"):
                others = [one for one in others if all(one is not index for index in args[1])]
            if others or len(found) > 1:
                devices = sorted({str(one.device) for one in tensors})
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {devices}")
        if name == "copy_":
            return args[0].device
        # The C++ part asks for the CPU where it means the device of an argument.
        return asked if asked is not None and asked.type == "cuda" else next(iter(found))

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def _check_read(self, tensor: torch.Tensor) -> None:
        time, _ = self.pending.get(tensor.untyped_storage().data_ptr(), (-1, None))
        if time > self.reached:
            raise RuntimeError("a copy from the device is read before it is known to be there")

    def _count(self, func, name, args, kwargs, shadows) -> None:
        if name in READS:
            self.wait(name)
        elif name == "copy_":
            self._count_copy(args[1], args[0].device, not (args[2] if len(args) > 2 else kwargs.get("non_blocking")))
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            indices = [one for one in args[1] if one is not None]
            if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
                # One value for all of them is a masked fill.
                accumulates = (list(args[3:4]) or [kwargs.get("accumulate", False)])[0]
                if name.endswith("index") or args[2].numel() != 1 or accumulates or len(indices) > 1:
                    self.wait("boolean index")
            elif any(not isinstance(one, ShadowTensor) for one in indices):
                self.wait("index from the CPU")
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait(name)

    # ---- soft-DTW ----

    def _soft_dtw(self, func, args, kwargs):
        """Values from the CPU backend, after the CUDA backend's own steps but for its kernels."""
        self._target(func, "", args, kwargs, [one for one in args if isinstance(one, torch.Tensor)], [args[0]])
        device = args[0].device
        assert "triton" in args, f"{func} on the device with another backend"
        before = Counter(self.waits)
        self._launch(func, args)
        assert self.waits == before, f"the CUDA backend waits: {self.waits - before}"
        real = [one.held if isinstance(one, ShadowTensor) else "cpu" if one == "triton" else one for one in args]
        found = func(*real, **kwargs)
        next(self.clock)
        return tree_map(lambda one: ShadowTensor(one, device), found)

    def _launch(self, func, args) -> None:
        """The CUDA backend's own operations, in eager mode on this device, and checks of its launches."""
        with self, torch.no_grad():
            getattr(operators, func._schema.name.split("::")[1])._init_fn(*args)

    def kernel(self, name: str):
        """Stands for a Triton kernel: `kernel[grid](...)` checks where its tensors are, and computes nothing."""
        device = self

        class Kernel:
            def __getitem__(self, grid):
                assert all(isinstance(size, int) and size > 0 for size in grid), grid

                def launch(*args, **constants):
                    places = {one.device for one in args if isinstance(one, torch.Tensor)}
                    assert places == {torch.device("cuda", device.current)}, (
                        f"{name} is launched on device {device.current} with tensors on {places}"
                    )
                    assert all(one.is_contiguous() for one in args if isinstance(one, torch.Tensor))
                    device.launches.append((name, device.current))

                return launch

        return Kernel()


@contextlib.contextmanager
def shadow_device(monkeypatch, devices: int = 1):
    """Within it, `cuda` exists and is a `ShadowDevice`, which it gives."""
    device = ShadowDevice(devices)

    def exchange(index: int) -> int:
        before = device.current
        if index >= 0:
            device.current = index
        return before

    class Stream:
        cuda_stream = 0

    stand_ins = {
        "is_available": lambda: True,
        "device_count": lambda: devices,
        "current_device": lambda: device.current,
        "set_device": lambda index: exchange(torch.device(index).index if not isinstance(index, int) else index),
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "shadow",
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (2**40, 2**40),
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "synchronize": lambda *_: device.wait("synchronize"),
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "Event": device.event(),
        "current_stream": lambda *_: Stream(),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("get_rng_state", "get_rng_state_all"):
        monkeypatch.setattr(torch.cuda.random, name, lambda *_: torch.zeros(16, dtype=torch.uint8))
        monkeypatch.setattr(torch.cuda, name, lambda *_: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    for name in ("skew", "sweep", "collect"):
        monkeypatch.setattr(triton_backend.kernels, name, device.kernel(name))
    move, autocast = torch.Tensor.to, torch.autocast.__init__

    def moved(self, *args, copy=False, **kwargs):
        if args and isinstance(args[0], torch.Tensor):  # for the C++ part that one is on the CPU
            args = (args[0].device, args[0].dtype, *args[1:])
        place, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        place = self.device if place is None else device.placed(place)
        if place == self.device:
            return move(self, dtype or self.dtype, copy=copy)
        return _Move.apply(self, place, dtype or self.dtype, non_blocking, device)

    def padded(sequences, batch_first=False, padding_value=0.0, padding_side="right"):
        assert batch_first
        assert padding_side == "right"
        longest = max(len(one) for one in sequences)
        out = sequences[0].new_full((len(sequences), longest, *sequences[0].shape[1:]), padding_value)
        for row, one in zip(out, sequences, strict=True):
            row[: len(one)].copy_(one)
        return out

    # Its C++ part makes a new tensor where, for that part, the sequences are: on the CPU.
    monkeypatch.setattr(torch._C._nn, "pad_sequence", padded)

    def grouped(lists, with_indices=False):
        found = {}
        for index, tensors in enumerate(zip(*lists, strict=True)):
            first = next(one for one in tensors if one is not None)
            group, indices = found.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
            indices.append(index)
            for own, one in zip(group, tensors, strict=True):
                own.append(one)
        return {key: (group, indices if with_indices else []) for key, (group, indices) in found.items()}

    def group(lists, with_indices=False):
        longest = max(map(len, lists))
        filled = grouped([own or [None] * longest for own in lists], with_indices)
        return {
            key: ([own if lists[place] else [] for place, own in enumerate(found)], indices)
            for key, (found, indices) in filled.items()
        }

    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", group)

    def cast(self, device_type, *args, **kwargs):
        autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def made(data, *args, make, **kwargs):
        place = kwargs.pop("device", None)
        if isinstance(data, ShadowTensor):
            return data.to(place or data.device, kwargs.get("dtype") or data.dtype)
        tensor = make(data, *args, **kwargs)
        return tensor if place is None else tensor.to(place)

    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, functools.partial(made, make=getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self.to("cuda"))
    monkeypatch.setattr(torch.autocast, "__init__", cast)
    # Else a parameter would be filled with what is in the moved one, and lose its class.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    module_to = torch.nn.Module.to

    def moved_module(self, *args, **kwargs):
        place, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        tensors = itertools.chain(self.parameters(), self.buffers())
        if dtype is None and all(one.device == device.placed(place) for one in tensors):
            return self  # an optimiser may hold its parameters already
        return module_to(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", moved_module)
    only_cpu = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(only_cpu)
