"""Reads gin files and single settings of a run; unknown names are errors."""

import os
import re
import tokenize
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import tensorflow as tf
from gin import config_parser

from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_imports, setting_names, setting_types

CONFIG_FILE = "config.gin"  # The name of the configuration in a model_dir.
# The errors of gin for wrong text; KeyError is that of an ambiguous name.
_WRONG = (ValueError, KeyError, NameError, SyntaxError, OSError, tokenize.TokenError)
_REQUIRED = "gin.REQUIRED"


class _Macro(NamedTuple):
    """A macro: `%name`."""

    name: str


class _Delegate(config_parser.ParserDelegate):
    """A parser delegate that returns references and macros as unresolved records."""

    def __init__(self, known: setting_types.Configurables):
        self._known = known

    def configurable_reference(self, scoped_name, evaluate):
        target = self._known.get(last_name(scoped_name))
        return setting_types.Reference(scoped_name, evaluate, target)

    def macro(self, name):
        return _Macro(name)


def register(
    configurables: setting_types.Configurables,
) -> dict[str, Callable[..., Any]]:
    """Registers functions and classes with gin.

    Args:
      configurables: The functions and classes by name.
    Returns:
      The functions and classes that gin configures, by the same names.
    """
    with gin.unlock_config():  # A program that loads a checkpoint may have locked it.
        return {
            name: gin.external_configurable(target, name=name)
            for name, target in configurables.items()
        }


def parse(
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    *,
    known: setting_types.Configurables,
    ranges: Mapping[str, setting_types.Range] = types.MappingProxyType({}),
    saved: str | None = None,
    paths: Mapping[str, Collection[str]] = types.MappingProxyType({}),
    search_path: Sequence[str] = (),
    renamed: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
    """Reads gin files, then single settings, which override the files.

    A parameter whose default is a configurable is that configurable with its settings,
    also where no file sets the parameter. In gin alone, a default has no settings.

    Includes are read from the directory of the including file or from `search_path`. A
    file may import a module with configurables of its own, such as a backbone.

    Args:
      gin_files: Paths, or names of files in `search_path`. Later files override earlier
        ones.
      gin_params: Settings such as "MAX_STEPS = 100".
      known: The registered configurables by name, for types and suggestions.
      ranges: The ranges of numbers, by setting.
      saved: The path of a configuration that a run saved, read before the others. It
        may only set values, because write access to a model_dir must not allow anyone
        to run code here.
      paths: The settings whose values are paths, with the values that are not paths.
        Relative paths become absolute.
      search_path: The directories of gin files.
      renamed: The new names of configurables and settings, by the old ones. Old names
        in `saved` are replaced; elsewhere they are errors that contain the new ones.
    Returns:
      The whole configuration as gin text, without the imports.
    Raises:
      UserError: A module cannot be imported, a name is unknown, a macro is unused, a
        value has the wrong type or is out of its range, or a text is not gin.
      MissingFileError: A file does not exist.
    """
    gin.clear_config()
    # gin's own readers also search Python's packages, and raise TypeError if a folder
    # of the working directory has the name of an included folder, such as data/.
    gin.config._FILE_READERS[:] = [(tf.io.gfile.GFile, tf.io.gfile.exists)]
    texts = [] if saved is None else [read_saved(saved, renamed)]
    gin_files = [locate(path, search_path) for path in gin_files]
    for directory in [*search_path, *map(os.path.dirname, gin_files)]:
        gin.add_config_file_search_path(directory)
    for setting in gin_params:
        _check_setting(setting)
    try:
        gin_imports.import_modules(gin_files)
        for text in texts:
            gin.parse_config(text, skip_unknown=False)
        gin.parse_config_files_and_bindings(
            list(gin_files),
            list(gin_params),
            skip_unknown=False,
            finalize_config=False,
        )
        for name, value in _relative_paths(gin.config_str(), known, paths).items():
            gin.parse_config(f"{name} = {os.path.abspath(value)!r}")
        text = gin_imports.without_imports(gin.config_str())
        bindings = _bindings(text, known)
        _check_macros(bindings)
        _check_values(bindings, known, ranges)
        _bind_default_parts(known)  # After the text, which has what the user sets.
        gin.finalize()
    except errors.UserError:
        raise
    except _WRONG as error:
        # The rest of the message is the whole configuration.
        message = str(error).partition(" in config string:")[0]
        raise errors.UserError(
            f"The gin configuration is wrong: {message}\n"
            f"{setting_names.suggestion(message, known, renamed)}".rstrip()
        ) from error
    return text


def _relative_paths(text, known, paths):
    """Returns the relative paths by the name of their setting or macro."""
    bindings = _bindings(text, known)
    macros = {_macro_name(x): x.value for x in bindings if not x.arg_name}
    relative = {}
    for binding in bindings:
        name = f"{last_name(binding.selector)}.{binding.arg_name}"
        value = binding.value
        while isinstance(value, _Macro) and value.name in macros:
            name, value = value.name, macros[value.name]
        setting = f"{last_name(binding.selector)}.{binding.arg_name}"
        is_path = setting in paths and value not in paths[setting]
        if is_path and isinstance(value, str) and _is_relative(value):
            relative[name] = value
    return relative


def _is_relative(path):
    is_remote = re.match(r"[a-z0-9]+:/", path) is not None
    return bool(path) and not is_remote and not os.path.isabs(path)


def locate(name: str, search_path: Sequence[str]) -> str:
    """Returns the path of a gin file.

    Args:
      name: A path, or a path relative to a directory of `search_path`. The directory's
        own name may come first, as in "gin_configs/quickstart.gin".
      search_path: Local directories.
    Raises:
      MissingFileError: The file does not exist.
      UserError: It is a directory.
    """
    roots = [root for path in search_path for root in (path, os.path.dirname(path))]
    is_relative = _is_relative(name)
    candidates = [name, *(os.path.join(root, name) for root in roots if is_relative)]
    path = next(filter(tf.io.gfile.exists, candidates), name)
    if path == name and not tf.io.gfile.exists(name):
        shipped = [f for x in search_path for f in os.listdir(x) if f.endswith(".gin")]
        closest = setting_names.closest(os.path.basename(name), shipped)
        raise errors.MissingFileError(
            f"No gin file {name} here or in {', '.join(search_path) or 'gin_configs'}."
            f"{closest if shipped else ''}"
        )
    _check_is_file(path)
    return path


def _check_is_file(path):
    if not tf.io.gfile.exists(path):
        raise errors.MissingFileError(f"No gin file {path}.")
    if tf.io.gfile.isdir(path):
        raise errors.UserError(f"{path} is a directory; name a gin file in it.")


def read_saved(
    path: str, renamed: Mapping[str, str] = types.MappingProxyType({})
) -> str:
    """Returns the text of a saved configuration that only sets values.

    Args:
      path: The path of the file.
      renamed: The new names by the old ones; see `parse`.
    Raises:
      MissingFileError: The file does not exist.
      UserError: It is not gin, or does more than set values.
    """
    _check_is_file(path)
    try:
        with tf.io.gfile.GFile(path) as file:
            text = file.read()
        statements = list(config_parser.ConfigParser(text, _Delegate({})))
    except (UnicodeDecodeError, RecursionError, *_WRONG) as error:
        raise errors.UserError(
            f"{path} is corrupt: {str(error).partition(' in config string:')[0]}. "
            "Restore it, or use another --model_dir."
        ) from error
    for statement in statements:
        if isinstance(
            statement, config_parser.ImportStatement | config_parser.IncludeStatement
        ):
            raise errors.UserError(
                f"{path}, line {statement.location.line_num} imports or includes "
                "another file; the configuration in a model_dir may only set values. "
                "Remove the line, and name the file with --gin_file."
            )
    return setting_names.with_new_names(text, renamed)


def read_saved_settings(
    path: str, renamed: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, Any]:
    """Returns the values of a saved configuration, by the names of the settings.

    A name is that of a configurable without scope and module, a dot and the parameter.
    Macros are replaced by their values. References to configurables and settings of a
    single scope are left out.

    Args:
      path: The file.
      renamed: See `parse`.
    Raises:
      MissingFileError: No such file.
      UserError: It is no gin, or does more than set values.
    """
    bindings = _bindings(read_saved(path, renamed), {})
    macros = {_macro_name(x): x.value for x in bindings if not x.arg_name}
    values = {
        f"{last_name(x.selector)}.{x.arg_name}": _resolved(x.value, macros)
        for x in bindings
        if x.arg_name and not x.scope
    }
    records = (_Macro, setting_types.Reference)
    return {name: x for name, x in values.items() if not isinstance(x, records)}


def _check_setting(setting):
    """Raises an error that names a --gin_param that is no gin."""
    try:
        list(config_parser.ConfigParser(setting, _Delegate({})))
    except _WRONG as error:
        message = str(error).splitlines()[0]
        raise errors.UserError(
            f'--gin_param={setting!r} is not a setting such as "MAX_STEPS = 100"'
            f"{_quotes_hint(setting) or f': {message}.'}"
        ) from error


def _quotes_hint(setting):
    """Returns how to write a value without quotes, "" if the setting has none."""
    match = re.fullmatch(r"\s*([\w./]+)\s*=\s*([^'\"()\[\]{},]+?)\s*", setting)
    if not match:
        return ""
    words = {"true": "True", "false": "False", "none": "None", "null": "None"}
    if match[2] in words:
        return f'; write "{match[1]} = {words[match[2]]}".'
    return f"; a string needs quotes: --gin_param=\"{match[1]} = '{match[2]}'\"."


def _bind_default_parts(known):
    for setting, name in setting_types.default_parts(known).items():
        try:
            gin.query_parameter(setting)
        except ValueError:  # It is not set.
            gin.parse_config(f"{setting} = @{name}")


def _bindings(text, known):
    statements = config_parser.ConfigParser(text, _Delegate(known))
    return [s for s in statements if isinstance(s, config_parser.BindingStatement)]


def _check_macros(bindings):
    """Raises for `NUM_CLASES = 3`, which gin would accept as a new macro."""
    defined = {_macro_name(x) for x in bindings if not x.arg_name}
    used = {name for x in bindings for name in _macros_in(x.value)}
    for name in sorted(defined - used):
        raise errors.UserError(
            f"{name} is set, but nothing uses it.{setting_names.closest(name, used)}"
        )
    for name in sorted(used - defined - {_REQUIRED}):
        raise errors.UserError(
            f"%{name} is used, but never set.{setting_names.closest(name, defined)}"
        )


def _check_values(bindings, known, ranges):
    """Raises for a value that has the wrong type or is out of its range."""
    macros = {_macro_name(x): x.value for x in bindings if not x.arg_name}
    for binding in bindings:
        target = known.get(last_name(binding.selector))
        if not binding.arg_name or target is None:
            continue
        annotation = setting_types.annotations(target).get(binding.arg_name, Any)
        value = _resolved(binding.value, macros)
        setting = f"{last_name(binding.selector)}.{binding.arg_name}"
        if value == _Macro(_REQUIRED):
            continue
        if not setting_types.fits(value, annotation):
            expected = setting_types.words(annotation)
            hint = setting_types.hint(value, annotation)
        elif setting in ranges and not ranges[setting].has(value):
            expected, hint = ranges[setting].words, ""
        else:
            continue
        is_macro = isinstance(binding.value, _Macro)
        name, subject = (binding.value.name, setting) if is_macro else (setting, "it")
        got = f"{name} is {setting_types.format_value(value)}"
        raise errors.UserError(f"{got}; {subject} must be {expected}.{hint}")


def _resolved(value, macros):
    """Returns a value whose macros are replaced by their values."""
    if isinstance(value, _Macro):
        return _resolved(macros[value.name], macros) if value.name in macros else value
    if type(value) in (list, tuple):
        return type(value)(_resolved(x, macros) for x in value)
    if isinstance(value, dict):
        return {_resolved(k, macros): _resolved(v, macros) for k, v in value.items()}
    return value


def _macros_in(value: Any) -> Iterator[str]:
    """Yields the names of the macros in a value."""
    if isinstance(value, _Macro):
        yield value.name
    elif isinstance(value, dict):
        yield from _macros_in([*value.keys(), *value.values()])
    elif type(value) in (list, tuple):
        for element in value:
            yield from _macros_in(element)


def _macro_name(binding):
    return "/".join(filter(None, [binding.scope, binding.selector]))


def last_name(path: str) -> str:
    """Returns the name of a configurable without scope and module."""
    return path.rpartition("/")[2].rpartition(".")[2]
