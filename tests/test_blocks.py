"""The stack of blocks: on the architectures of transformers, and on modules made to mislead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from educe.errors import ModelError
from educe.model.blocks import (
    Call,
    find_stack,
    find_tail,
    narrowed,
    replaced,
    stream_in,
    stream_out,
    with_stream,
)
from educe.model.language import LanguageModel

WIDTH = 6


class Block(nn.Module):
    """Add something to the stream; hand it on in the form asked for."""

    def __init__(self, form: str = "bare", scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.form, self.scale = form, scale

    def forward(self, hidden_states: Tensor, mask: Any = None) -> Any:
        stream = hidden_states + self.linear(hidden_states) * self.scale
        return {"bare": stream, "one": (stream,), "two": (stream, mask)}[self.form]


class Toy(nn.Module):
    """A model with lists of modules; ``order`` says which blocks it calls, and how."""

    def __init__(self, order: Callable[[Toy, Tensor], Tensor], **lists: list[nn.Module]) -> None:
        super().__init__()
        for name, members in lists.items():
            self.add_module(name, nn.ModuleList(members))
        self.order = order

    def forward(self, stream: Tensor) -> Tensor:
        return self.order(self, stream)


def chain(blocks: Any, stream: Tensor) -> Tensor:
    for block in blocks:
        stream = stream_out(block(stream))
    return stream


def stack_of(model: nn.Module) -> Any:
    with torch.no_grad():
        return find_stack(model, lambda: model(torch.ones(1, 3, WIDTH)))


def test_finds_the_blocks_of_every_architecture(any_lm: Any) -> None:
    expected = list(any_lm.hf.get_submodule(tiny.path(any_lm.hf)))
    assert any_lm.stack.name == tiny.path(any_lm.hf)
    assert len(any_lm.blocks) == any_lm.depth == 4
    assert all(a is b for a, b in zip(any_lm.blocks, expected, strict=True))
    assert any_lm.width == 32


def test_longest_chain_wins() -> None:
    model = Toy(
        lambda m, x: chain(m.late, chain(m.blocks, chain(m.early, x))),
        early=[Block(), Block()],
        blocks=[Block(), Block(), Block()],
        late=[Block()],
    )
    stack = stack_of(model)
    assert (stack.name, len(stack.blocks), stack.width) == ("blocks", 3, WIDTH)


def test_a_longer_list_that_is_no_chain_is_passed_over() -> None:
    def order(m: Toy, x: Tensor) -> Tensor:
        beside = sum(expert(x) for expert in m.experts)  # all of the same input
        return chain(m.blocks, x) + beside

    model = Toy(order, experts=[Block() for _ in range(5)], blocks=[Block(), Block()])
    assert stack_of(model).name == "blocks"


def test_a_list_called_in_another_order_is_no_chain() -> None:
    def order(m: Toy, x: Tensor) -> Tensor:
        return chain(m.blocks, chain(list(m.backwards)[::-1], x))

    model = Toy(order, backwards=[Block() for _ in range(3)], blocks=[Block(), Block()])
    assert stack_of(model).name == "blocks"


def test_blocks_with_work_between_them_are_no_chain() -> None:
    def order(m: Toy, x: Tensor) -> Tensor:
        for block in m.scaled:
            x = block(x) / 2
        return chain(m.blocks, x)

    model = Toy(order, scaled=[Block() for _ in range(3)], blocks=[Block(), Block()])
    assert stack_of(model).name == "blocks"


def test_blocks_called_twice_or_never_are_no_stack() -> None:
    twice = Toy(lambda m, x: chain(m.blocks, chain(m.blocks, x)), blocks=[Block(), Block()])
    with pytest.raises(ModelError):
        stack_of(twice)
    never = Toy(lambda m, x: chain(m.blocks, x), unused=[Block()] * 4, blocks=[Block(), Block()])
    assert stack_of(never).name == "blocks"


def test_no_stack_is_an_error_that_names_the_lists() -> None:
    class Mixer(Toy):
        pass

    model = Mixer(
        lambda m, x: sum(e(x) for e in m.experts),
        experts=[Block(), Block()],
        spare=[Block()],
    )
    with pytest.raises(ModelError) as error:
        stack_of(model)
    for part in ("Mixer", "experts (2)", "spare (1)"):
        assert part in str(error.value)
    with pytest.raises(ModelError, match=r"lists: none"):
        stack_of(nn.Linear(WIDTH, WIDTH))


def test_finding_leaves_no_hook_behind() -> None:
    model = Toy(lambda m, x: chain(m.blocks, x), blocks=[Block(), Block()])
    stack_of(model)
    with pytest.raises(ZeroDivisionError):
        find_stack(model, lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("form", "items"), [("bare", 0), ("one", 1), ("two", 2)])
def test_streams_keep_the_form_in_which_blocks_return_them(form: str, items: int) -> None:
    model = Toy(lambda m, x: chain(m.blocks, x), blocks=[Block(form), Block(form)])
    stack = stack_of(model)
    assert stack.items == [items, items]
    given, mask, other = torch.rand(1, 3, WIDTH), object(), torch.rand(1, 3, WIDTH)
    output = model.blocks[0](given, mask=mask)
    shaped = stack.shaped(0, other)
    changed = with_stream(output, other)
    assert type(shaped) is type(changed) is type(output)
    assert stream_out(shaped) is stream_out(changed) is other
    if items:
        assert len(shaped) == len(changed) == items
        assert changed[1:] == output[1:]


def test_stream_in_splits_a_call() -> None:
    stream = torch.rand(1, 2, WIDTH)
    assert stream_in((stream, 1, 2), {"mask": 3}) == (stream, Call((1, 2), {"mask": 3}))
    given = {"hidden_states": stream, "mask": 3}
    assert stream_in((), given) == (stream, Call((), {"mask": 3}))
    assert set(given) == {"hidden_states", "mask"}


def test_replaced_lasts_as_long_as_the_with_statement() -> None:
    plain, patched = Block(), Block()
    own = lambda stream: stream * 5  # noqa: E731
    patched.forward = own
    x = torch.rand(1, 2, WIDTH)
    before = plain(x)
    with replaced([plain, patched], [lambda s: s * 2, lambda s: s * 3]):
        assert torch.equal(plain(x), x * 2)
        assert torch.equal(patched(x), x * 3)
    assert torch.equal(plain(x), before)
    assert "forward" not in vars(plain)
    assert patched.forward is own


def test_replaced_restores_after_an_error() -> None:
    block = Block()
    with pytest.raises(ZeroDivisionError), replaced([block], [lambda s: s]):
        1 / 0  # noqa: B018
    assert "forward" not in vars(block)


class Mixed(nn.Module):
    """A block with a token mixer, a member that mixes tokens too, and members that do not."""

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.late = late  # tokens are mixed after the mixer's last matrix
        self.first = nn.Linear(WIDTH, WIDTH)
        self.mixer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.norm, self.again = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.shift, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        shift = self.shift.forward
        self.shift.forward = lambda x: shift(x.roll(1, 1))  # type: ignore[method-assign]

    def forward(self, stream: Tensor) -> Tensor:
        mixed = self.mixer(stream).cumsum(1) if self.late else self.mixer(stream.cumsum(1))
        shifted, stream = self.shift(stream), stream + mixed
        stream = stream + self.again(self.again(self.norm(stream)))
        return stream + shifted + self.last(stream)


@pytest.mark.parametrize("late", [False, True])
def test_the_tail_of_a_block_works_token_by_token(late: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Mixed(late=late)
        stream = torch.randn(2, 5, WIDTH)
    tail = find_tail(block, WIDTH, lambda: block(stream))
    assert tail == ([block.last] if late else [block.mixer[1], block.last])
    assert not block.last._forward_hooks


def test_narrowed_modules_leave_out_the_first_tokens() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Mixed()
        stream = torch.randn(2, 5, WIDTH)
    whole, seen = block(stream), []
    plain = block.last(stream)
    block.last.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    with narrowed([block.mixer[1], block.last], 3):
        assert not block.last(stream)[:, :3].any()
        torch.testing.assert_close(block.last(stream)[:, 3:], plain[:, 3:])
    assert seen == [5, 5]
    torch.testing.assert_close(block(stream), whole)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt"])
def test_what_a_block_adds_is_found_in_half_precision_too(architecture: str) -> None:
    """One of them adds both at once, the others one after the other."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        hf = tiny.hf_model(architecture, dtype=dtype)
        lm = LanguageModel(hf, tiny.tokenizer(), name=architecture)
        paths = {module: path for path, module in hf.named_modules()}
        found.append([paths[module] for module in lm.writers(2)])
    assert found[0] == found[1]
