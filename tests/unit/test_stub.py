"""The stub of the engine says what the built module has: the same names, methods, parameters and defaults."""

import ast
import inspect
from pathlib import Path

import aerobee
from aerobee import _engine

STUB = ast.parse((Path(aerobee.__file__).parent / "_engine.pyi").read_text())


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def stub_classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}


def stub_functions(body: list[ast.stmt]) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def stub_fields(body: list[ast.stmt]) -> set[str]:
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def stub_parameters(function: ast.FunctionDef) -> list[str]:
    """Each parameter as `name` or `name=default`, in order, without self."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    out = [a.arg if d is None else f"{a.arg}={ast.literal_eval(d)!r}" for a, d in pairs if a.arg not in ("self", "cls")]
    if arguments.kwarg is not None:
        out.append(f"**{arguments.kwarg.arg}")
    return out


def built_parameters(function: object) -> list[str]:
    out = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            out.append(f"**{parameter.name}")
        elif parameter.default is parameter.empty:
            out.append(parameter.name)
        else:
            out.append(f"{parameter.name}={parameter.default!r}")
    return out


def test_the_same_names() -> None:
    targets = [target for node in STUB.body if isinstance(node, ast.Assign) for target in node.targets]
    aliases = public([target.id for target in targets if isinstance(target, ast.Name)])
    assert public(dir(_engine)) == aliases | set(stub_classes()) | set(stub_functions(STUB.body))


def test_the_same_functions() -> None:
    for name, function in stub_functions(STUB.body).items():
        assert built_parameters(getattr(_engine, name)) == stub_parameters(function), name


def test_the_same_classes() -> None:
    for class_name, node in stub_classes().items():
        built = getattr(_engine, class_name)
        functions = stub_functions(node.body)
        assert public(dir(built)) == public([*functions, *stub_fields(node.body)]), class_name
        for name, function in functions.items():
            if any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list):
                assert inspect.isgetsetdescriptor(inspect.getattr_static(built, name)), f"{class_name}.{name}"
                continue
            what = built if name == "__new__" else getattr(built, name)
            assert built_parameters(what) == stub_parameters(function), f"{class_name}.{name}"


def test_the_stub_is_about_a_page() -> None:
    source = (Path(aerobee.__file__).parent / "_engine.pyi").read_text()
    assert len(source.splitlines()) < 280, "the face of the engine grew; can a method go?"
