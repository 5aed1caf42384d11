"""How a conversation becomes text."""

from dataclasses import dataclass, field
from typing import Literal, Optional

ROLES = ("system", "user", "assistant", "earlier", "tool", "thoughts", "commands")
"""Fields of a template that say what is around a turn."""


@dataclass(frozen=True)
class RoleTemplate:
    """What stands around one turn."""

    prefix: str = ""
    """Text before the turn's content."""
    suffix: str = ""
    """Text after the turn's content, before its stop."""
    opening: str = ""
    """Of an assistant turn: text that the reply begins with, which the model learns to write. Of
    others, with train prefix: text behind the prefix."""
    stop: Optional[str] = None
    """What ends the turn. None: the end-of-sequence token behind an assistant turn, nothing behind
    others. Empty: nothing."""
    train: Optional[Literal["none", "content", "markers", "prefix", "all"]] = None
    """What carries loss in stage 1. content: content, suffix and stop; markers: prefix, suffix and
    stop, not what stands between; prefix: that alone; all: the prefix and the content. None:
    content of assistant turns."""


@dataclass(frozen=True)
class ImageTemplate:
    """Where images stand in a text (docs/data.md)."""

    place: Literal["in_place", "front"] = "in_place"
    """in_place: where a turn says <image>, before the first user turn if none does. front: always
    at the beginning of the turn that says it."""
    before: str = ""
    """Text before an image."""
    after: str = ""
    """Text behind an image."""
    requests: list[str] = field(default_factory=list)
    """With format caption, what is asked of the image; one is drawn for each row. Empty: nothing,
    the caption follows the image."""
    clean: bool = False
    """With format caption: captions in lower case, without .!"()*#:;~, 50 words at most."""
    end_of_chunk: str = ""
    """Text behind what belongs to an image in interleaved rows (MMC4's form)."""


@dataclass(frozen=True)
class TemplateSection:
    """How a conversation becomes text."""

    kind: Literal["chat", "roles", "none"] = "chat"
    """chat: the tokenizer's own chat template. roles: the three fields below. none: prompt and
    reply verbatim. Chat by default: today's models carry a template and do worse without it."""
    system: RoleTemplate = field(default_factory=RoleTemplate)
    """Around a system turn, with kind roles."""
    user: RoleTemplate = field(default_factory=RoleTemplate)
    """Around a user turn, with kind roles."""
    assistant: RoleTemplate = field(default_factory=RoleTemplate)
    """Around an assistant turn, with kind roles; its prefix ends the prompt of stage 3."""
    earlier: RoleTemplate = field(default_factory=RoleTemplate)
    """Around assistant turns before the last reply, where they have another form than the last one;
    they are then not trained. Nothing set: as `assistant`."""
    tool: RoleTemplate = field(default_factory=RoleTemplate)
    """Around the result of a tool, with kind roles."""
    thoughts: RoleTemplate = field(default_factory=RoleTemplate)
    """Around what the assistant thinks before it replies, with kind roles."""
    commands: RoleTemplate = field(default_factory=RoleTemplate)
    """Around what the assistant tells its tools, with kind roles."""
    marked: bool = False
    """Turns bring their prefixes and suffixes with them: none is written, they only tell which part
    of a turn is trained."""
    system_in_user: bool = False
    """The system turn, with what is around it, stands inside the first user turn, before its
    content."""
    alternate: bool = False
    """Conversations begin with a user turn, and users and assistants take turns: what an assistant
    says before is left out, other rows are dropped. Both are counted."""
    strip: bool = False
    """White space around every turn is taken away, with kind roles."""
    system_prompt: Optional[str] = None
    """System turn put before conversations that have none. None: nothing is put."""
    system_prompt_input: Optional[str] = None
    """The same for rows with an `input`. None: as `system_prompt`."""
    separator: str = "\n"
    """Between `instruction` and `input` of a row that has both; a line break, as is usual."""
    chat_template: Optional[str] = None
    """Jinja text in place of the tokenizer's chat template, with kind chat."""
    replace: dict[str, str] = field(default_factory=dict)
    """Texts replaced in every turn: `{"\\n": "\\\\n"}` writes line breaks as two characters."""
    bos: bool = True
    """Put the token that the tokenizer begins texts with; off for models that are trained without
    it. A chat template writes its own."""
    eos_token: Optional[str] = None
    """End-of-sequence token by name, in place of the tokenizer's. None: the tokenizer's own."""
    tokens: list[str] = field(default_factory=list)
    """Special tokens added to the vocabulary; their embeddings begin at the mean of the others'."""
    image: ImageTemplate = field(default_factory=ImageTemplate)
    """Images, of bases that read them."""
