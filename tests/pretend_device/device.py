"""An accelerator that is not there: tensors that claim to be on `cuda:0` or `mps:0` and hold true values on the CPU.

Control flow that depends on values runs as on a real device. An operation that mixes devices raises where the real one
does; copies and waits are counted; as `mps` it refuses float64 and every operator that
torch's own table gives no kernel for. Not simulated: the numbers of half precision, libraries, streams, memory.
"""

import ctypes
import subprocess
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

HERE = Path(__file__).parent
COUNTS = Counter()  # kernels, to the device, from the device, waits
KIND = SimpleNamespace(name="cuda")

# Reads that tell the program a value, for which it waits until the device is done.
WAITS = {"nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive", "is_nonzero", "bincount"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Operators that take no number from the CPU, not even a single one.
WHOLE = ("cat", "stack", "mm", "bmm", "addmm", "convolution", "gather", "scatter", "index_select", "_fused")
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "slice", "select"}
VIEWS |= {"split", "split_with_sizes", "unbind", "detach", "alias", "as_strided", "_reshape_alias", "unfold"}
VIEWS |= {"diagonal", "lift_fresh", "is_same_size", "unsafe_split", "real", "imag", "view_as_real", "view_as_complex"}


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


class OnDevice(torch.Tensor):
    """A tensor that claims to be on the device; `true` holds its values."""

    @staticmethod
    def __new__(cls, true):
        with torch._C._DisableTorchDispatch():
            empty = torch.empty_strided(true.size(), true.stride(), dtype=true.dtype, device="meta")
        device = torch.device(KIND.name, 0)
        made = torch.Tensor._make_subclass(cls, empty, False, device_for_backend_keys=device)
        made.true = true
        return made

    def __init__(self, true):
        pass

    # By these modules know that a parameter of this kind takes the place of another whole.
    def __tensor_flatten__(self):
        return ["true"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return OnDevice(inner["true"])

    device = property(lambda self: torch.device(KIND.name, 0))
    is_cuda = property(lambda self: KIND.name == "cuda")
    is_mps = property(lambda self: KIND.name == "mps")
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {KIND.name}:0 device type tensor to numpy; use Tensor.cpu()")

    __array__ = numpy

    def tolist(self):
        COUNTS["waits"] += 1
        return self.true.tolist()

    def __repr__(self):
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Within it, what is made on the device or moved there is `OnDevice`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})


def mapped(change, value):
    """A nest of lists, tuples and dictionaries with its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([mapped(change, one) for one in value])
    return {name: mapped(change, one) for name, one in value.items()} if kind is dict else value


def held(tensor):
    """A tensor's true values."""
    return tensor.true if isinstance(tensor, OnDevice) else tensor


def true(value):
    """A nest with the true values of its tensors."""
    return mapped(held, value)


def claim(tensor):
    """A tensor that claims to be on the device."""
    return tensor if isinstance(tensor, OnDevice) else OnDevice(tensor)


def tensors(values):
    """All tensors of nested values."""
    found, queue = [], list(values)
    for one in queue:
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif type(one) in (list, tuple):
            queue.extend(one)
        elif type(one) is dict:
            queue.extend(one.values())
    return found


def here(device):
    """Whether this device is the pretended one."""
    # torch asks for the meta device where it makes an empty tensor like one of ours.
    return device is not None and torch.device(device).type in (KIND.name, "meta")


def dispatch(function, args, kwargs):
    """Run an operator on the true values, as far as the device would."""
    name = function._schema.name.partition("::")[2]
    given = tensors((*args, *kwargs.values()))
    ours = [one for one in given if isinstance(one, OnDevice)]
    others = [one for one in given if not isinstance(one, OnDevice)]
    asked = kwargs.get("device")
    if not ours and not here(asked):
        return function(*args, **kwargs)
    if name == "_to_copy":
        return _copied(function, args[0], kwargs)
    if name == "copy_":
        target, source = args[:2]
        if isinstance(target, OnDevice) != isinstance(source, OnDevice):
            _count_copy(isinstance(target, OnDevice), at_once=len(args) > 2 and args[2])
        true(target).copy_(true(source))
        return target
    if name == "_local_scalar_dense":
        COUNTS["waits"] += 1
        return function(true(args[0]))
    if name == "_fused_sdp_choice":
        return 0
    if name in INDEXED:
        _check_index(name, args)
    elif ours:
        _check_together(name, others)
    if name in WAITS:
        COUNTS["waits"] += 1
    plain = true(kwargs)
    if asked is not None:
        plain = {key: value for key, value in plain.items() if key != "pin_memory"} | {"device": torch.device("cpu")}
    result = function(*true(args), **plain)
    if asked is not None and not here(asked):
        return result
    if name not in VIEWS:
        COUNTS["kernels"] += 1
    for one in tensors((result,)):
        _check_mps(function, one)
    return _aliased(function, name, args, kwargs, mapped(claim, result), ours)


def _aliased(function, name, args, kwargs, result, ours):
    """The result as torch expects it: of a view with its base, of a change in place the very tensor."""
    schema = function._schema
    if not ours or not schema.returns:
        return result if ours or schema.returns else None
    if schema.is_mutable and name.endswith("_"):
        return args[0]
    if name not in VIEWS and not schema.is_mutable:
        return result
    return return_and_correct_aliasing(function, args, kwargs, result)


def _copied(function, source, kwargs):
    """`.to()`: to the device, from it, or on one side to another type."""
    stays = "device" not in kwargs or kwargs["device"] is None
    to_device = isinstance(source, OnDevice) if stays else here(kwargs["device"])
    plain = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    made = function(true(source), **plain)
    if to_device:
        if isinstance(source, OnDevice):
            COUNTS["kernels"] += 1
        else:
            _count_copy(to_device=True, at_once=kwargs.get("non_blocking"))
        _check_mps(function, made)
        return OnDevice(made)
    _count_copy(to_device=False, at_once=False)
    return made


def _count_copy(to_device, at_once):
    """A copy, for which the host waits until the device has done all before it, unless it need not."""
    COUNTS["to the device" if to_device else "from the device"] += 1
    if not (to_device and at_once):
        COUNTS["waits"] += 1


def _check_index(name, args):
    """Indices may lie on the CPU; what is indexed by device tensors may not, nor what is put into one."""
    indices = [one for one in args[1] if isinstance(one, torch.Tensor)]
    if isinstance(args[0], OnDevice):
        for one in indices:
            if not isinstance(one, OnDevice):
                _count_copy(to_device=True, at_once=False)
            elif one.dtype in (torch.bool, torch.uint8):
                COUNTS["waits"] += 1
        if len(args) > 2 and not isinstance(args[2], OnDevice) and args[2].ndim:
            raise Mixed(f"{name}: expected values on {KIND.name}, found cpu")
    elif any(isinstance(one, OnDevice) for one in indices):
        raise Mixed("indices should be either on cpu or on the same device as the indexed tensor (cpu)")


def _check_together(name, others):
    """Only single numbers may come from the CPU."""
    for one in others:
        if one.ndim or name.startswith(WHOLE):
            shape = tuple(one.shape)
            raise Mixed(f"expected all tensors on the same device, found {KIND.name}:0 and cpu ({name}, cpu {shape})")


def _check_mps(function, made):
    if KIND.name != "mps":
        return
    if made.dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    if without_mps(function):
        raise NotImplementedError(f"{function} is not currently implemented for the MPS device")


@cache
def kernels():
    """{operator: the dispatch keys that it has kernels for}, those of its structured form included."""
    import torchgen

    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = {
        entry["func"].partition("(")[0]: entry
        for entry in yaml.load(table.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    }

    def keys(entry):
        delegate = entry.get("structured_delegate")
        own = {key.strip() for names in entry.get("dispatch", {}) for key in names.split(",")}
        return own | (keys(entries[delegate]) if delegate else set())

    return {name: keys(entry) for name, entry in entries.items()}


@cache
def without_mps(function):
    """Whether an operator has kernels, but none that MPS can use."""
    schema = function._schema
    name = f"{schema.name}.{schema.overload_name}".removeprefix("aten::").rstrip(".")
    everywhere = {"CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd"}
    keys = kernels().get(name, set())
    return bool(keys) and not keys & {"MPS", *everywhere}


def build(folder, compiler):
    """Compile the device guard into a folder."""
    torch_folder = Path(torch.__file__).parent
    library, include = Path(folder) / "guard.so", torch_folder / "include"
    command = [compiler, "-shared", "-fPIC", "-O1", "-std=c++20", f"-I{include}", f"-I{sysconfig.get_path('include')}"]
    command += [str(HERE / "guard.cpp"), "-o", str(library)]
    command += [f"-L{torch_folder / 'lib'}", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    subprocess.run(command, check=True)
    return library


def moved(factory):
    """A factory that makes its tensor on the CPU and moves it: what it does within is hidden from dispatch."""

    def make(*args, device=None, **kwargs):
        made = factory(*args, **kwargs)
        return made if device is None else made.to(device)

    return make


def install(kind, guard):
    """Pretend in this process, for good, that there is one device of this kind."""
    KIND.name = kind
    ctypes.CDLL(str(guard)).pretend()
    torch.__future__.set_swap_module_params_on_conversion(False)
    torch.tensor, torch.as_tensor = moved(torch.tensor), moved(torch.as_tensor)
    torch.Tensor.pin_memory = lambda self, *args: self
    state = torch.zeros(16, dtype=torch.uint8)
    for module in (torch.cuda, torch.mps):
        module.get_rng_state = lambda *args: state
        module.set_rng_state = lambda *args: None
        module.manual_seed = lambda *args: None
        module.synchronize = lambda *args: None
        module.empty_cache = lambda *args: None
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.manual_seed_all = lambda *args: None
    cuda._is_in_bad_fork = lambda: False
    cuda.current_device = lambda: 0
    cuda.set_device = lambda device: None
    if kind == "cuda":
        cuda.is_initialized = cuda.is_available = lambda: True
        cuda.device_count = lambda: 1
        cuda.get_device_capability = lambda *args: (9, 0)
        cuda.is_bf16_supported = lambda including_emulation=True: True
    else:
        torch.backends.mps.is_available = lambda: True
