"""Versions: Python, xmodal, and each dependency beside the bounds that the package's own metadata declares."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from xmodal.config.sources import CONF_DIR
from xmodal.doctor.finding import Finding, Mark, reason

_TWINS = {"faiss-gpu": "faiss-cpu", "faiss-cpu": "faiss-gpu"}  # one library under two names


def python(package: str = "xmodal") -> Iterator[Finding]:
    """The interpreter, beside what the package asks for."""
    found, wanted = platform.python_version(), str(distribution(package).metadata["Requires-Python"] or "")
    fits = SpecifierSet(wanted).contains(found, prereleases=True)
    advice = "" if fits else f"make an environment with Python {wanted}: python3 -m venv .venv"
    yield Finding("python", "ok" if fits else "fault", _beside(found, wanted), advice, {"version": found})


def itself(package: str = "xmodal") -> Iterator[Finding]:
    """The package, and where its code is."""
    import xmodal

    found = version(package)
    place = Path(xmodal.__file__).parent
    yield Finding(package, "ok", f"{found} in {place}", values={"version": found, "folder": str(place)})


def dependencies(package: str = "xmodal") -> Iterator[Finding]:
    """A line for each package that is needed here."""
    for requirement in _declared(package):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _dependency(requirement)


def extras(package: str = "xmodal") -> Iterator[Finding]:
    """A line for each extra: whether all that it brings is here."""
    for extra in distribution(package).metadata.get_all("Provides-Extra") or []:
        brought = [requirement for requirement in _declared(package) if _is_of(requirement, extra)]
        absent = [requirement for requirement in brought if _fault(requirement)]
        if not absent:
            yield Finding(f"extra {extra}", "ok", ", ".join(f"{one.name} {_installed(one.name)}" for one in brought))
            continue
        lacking = ", ".join(f"{one.name} {_fault(one)}" for one in absent)
        yield Finding(f"extra {extra}", "optional", lacking, _getting(extra, absent))


def twins() -> Iterator[Finding]:
    """Two packages that fill the same folder: the one that came last wins, and leaves parts of the other."""
    found = [f"{name} {known}" for name in _TWINS if (known := _installed(name))]
    if len(found) > 1:
        advice = f"pip uninstall -y {' '.join(_TWINS)}; pip install {next(iter(_TWINS))}"
        yield Finding("faiss twice", "warning", f"{' and '.join(found)} share one folder", advice)


def torch_and_torchvision() -> Iterator[Finding]:
    """Whether both can be imported, and torchvision's compiled operators were made for this torch."""
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5).tolist()
    except Exception as error:  # import errors, and those of operators that are not registered
        yield Finding("torch with torchvision", "fault", reason(error), _pair())
        return
    if kept != [1, 2]:
        yield Finding("torch with torchvision", "fault", f"nms keeps boxes {kept} instead of [1, 2]", _pair())
        return
    found = f"{torch.__version__} with {torchvision.__version__}: imported, nms runs"
    yield Finding("torch with torchvision", "ok", found)


def _declared(package: str) -> list[Requirement]:
    return sorted((Requirement(line) for line in requires(package) or []), key=lambda one: one.name)


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def _dependency(requirement: Requirement) -> Finding:
    name, wanted, found = requirement.name, str(requirement.specifier), _installed(requirement.name)
    fault, values = _fault(requirement), {"version": found, "declared": wanted}
    if fault is None:
        return Finding(name, "ok", _beside(str(found), wanted), values=values)
    twin = _TWINS.get(name, "")
    if found is None and (other := _installed(twin)):
        return Finding(name, "warning", f"{twin} {other} is here instead", f"pip install '{name}{wanted}'", values)
    mark: Mark = "missing" if found is None else "fault"
    return Finding(name, mark, f"{fault}", f"pip install '{name}{wanted}'", values)


def _fault(requirement: Requirement) -> str | None:
    """What is wrong with what is installed, in a few words; None where nothing is."""
    found, wanted = _installed(requirement.name), requirement.specifier
    if found is None:
        return f"is absent, {wanted} is declared" if str(wanted) else "is absent"
    try:
        fits = wanted.contains(Version(found), prereleases=True)
    except InvalidVersion:
        return f"has the version {found!r}, which can't be read"
    return None if fits else f"{found} is installed, {wanted} is declared"


def _installed(name: str) -> str | None:
    try:
        return version(name) if name else None
    except PackageNotFoundError:
        return None


def _beside(found: str, wanted: str) -> str:
    return f"{found} ({wanted})" if wanted else found


def _getting(extra: str, absent: list[Requirement]) -> str:
    """In a checkout the README's line, which holds versions that were tried; elsewhere the packages themselves."""
    checkout = CONF_DIR.parent
    if (checkout / "constraints.txt").is_file():
        return f"in {checkout}: pip install -c constraints.txt -e '.[{extra}]'"
    return " ".join(["pip install", *(f"'{one.name}{one.specifier}'" for one in absent)])


def _pair() -> str:
    """torchvision's own metadata name the torch that it was compiled for."""
    if _installed("torchvision") is None or _installed("torch") is None:
        return "pip install torch torchvision"
    wanted = [one for one in _declared("torchvision") if one.name == "torch"]
    named = "".join(f"torch{one.specifier}" for one in wanted) or "torch"
    return f"pip install --force-reinstall torchvision=={version('torchvision').partition('+')[0]} '{named}'"
