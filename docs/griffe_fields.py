"""A Griffe extension: dataclass fields with a help text in their metadata appear as documented attributes."""

import ast

import griffe


class FieldHelp(griffe.Extension):
    """Lists the help texts of `described(text, default)` and `field(metadata={"help": text})`."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs) -> None:
        """Runs for each class before the signatures of dataclasses are made."""
        helps = {}
        for name, attribute in cls.attributes.items():
            value = attribute.value
            if not isinstance(value, griffe.ExprCall):
                continue
            call = ast.parse(str(value), mode="eval").body
            if value.canonical_path.endswith("recipe.described"):
                helps[name] = ast.literal_eval(call.args[0])
                attribute.value = value.arguments[1] if len(call.args) > 1 else None
            elif value.canonical_path == "dataclasses.field":
                for keyword in call.keywords:
                    if keyword.arg == "metadata":
                        helps[name] = ast.literal_eval(keyword.value)["help"]
        if helps and cls.docstring:
            lines = [f"    {name}: {text}" for name, text in helps.items()]
            cls.docstring.value += "\n".join(["\n\nAttributes:", *lines])
