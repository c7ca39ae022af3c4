import pytest

from keras_resnet.classification import get_recipe
from keras_resnet.training.schedules import ERROR_WINDOW, Schedule, progressive_size


def schedule(total=100, epoch=10, **changes):
    changes = {"warmup_epochs": 0, "learning_rate": 0.1, **changes}
    return Schedule(get_recipe("digits").replace(**changes), total, epoch)


def rates(made, *steps):
    return [made.rate(step) for step in steps]


def test_constant_with_linear_warmup():
    made = schedule(schedule="constant", warmup_epochs=0.5)
    assert rates(made, 0, 1, 4, 5, 99) == pytest.approx([0.02, 0.04, 0.1, 0.1, 0.1])


def test_steps_against_the_papers_table():
    # Section 4.2: 0.1, divided by 10 at 32k and 48k of 64k steps.
    recipe = get_recipe("cifar10_paper")
    made = Schedule(recipe, recipe.steps, 351)
    assert rates(made, 0, 31_999, 32_000, 47_999, 48_000, 63_999) == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_cosine_by_hand():
    made = schedule(schedule="cosine", total=100)
    # 0.05 (1 + cos(pi t)) at t = 0, 1/4, 1/2, 3/4, 1.
    assert rates(made, 0, 25, 50, 75, 100) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-7)


def test_cosine_starts_at_its_peak_after_the_warmup():
    made = schedule(schedule="cosine", warmup_epochs=2)
    assert rates(made, 0, 19, 20, 60) == pytest.approx([0.005, 0.1, 0.1, 0.05])


def test_plateau_divides_after_patience_epochs_without_a_better_error():
    made = schedule(schedule="plateau", patience=2)
    seen = []
    for error in [0.5, 0.4, 0.4, 0.41, 0.39, 0.4, 0.4, 0.4, 0.4]:
        made.observe_epoch(error)
        seen.append(made.rate(0))
    assert seen == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_other_schedules_ignore_the_validation_error():
    made = schedule(schedule="constant", patience=1)
    for _ in range(5):
        made.observe_epoch(0.9)
    assert made.rate(50) == 0.1


def observe(made, first, error, steps=ERROR_WINDOW):
    for step in range(first, first + steps):
        made.observe_errors(step, round(error * 1000), 1000)


def test_the_110_layers_warm_up_until_the_stated_error():
    recipe = get_recipe("cifar10_paper", "cifar_resnet110")
    made = Schedule(recipe, recipe.steps, 351)
    assert made.error_window == ERROR_WINDOW
    assert made.rate(0) == 0.01
    observe(made, 0, 0.85)
    assert made.rate(100) == 0.01
    observe(made, 100, 0.80)
    assert made.rate(200) == 0.01  # the paper: *below* 80 %
    observe(made, 200, 0.79, ERROR_WINDOW - 1)
    assert made.rate(299) == 0.01
    observe(made, 299, 0.79, 1)
    assert made.rate(300) == 0.1
    assert made.error_window is None
    observe(made, 300, 0.99)
    assert made.rate(400) == 0.1  # once warm, always warm
    assert made.rate(32_000) == pytest.approx(0.01)


def test_state_is_transferable():
    recipe = get_recipe("cifar10_paper", "cifar_resnet110")
    first, second = Schedule(recipe, 1000, 10), Schedule(recipe, 1000, 10)
    observe(first, 0, 0.5, 60)
    second.state = dict(first.state)
    observe(second, 60, 0.9, 40)
    assert second.rate(100) == 0.1  # (60 x 0.5 + 40 x 0.9) / 100 < 0.8


def test_progressive_sizes_rise_in_equal_parts_of_the_run():
    schedule = (0.57, 0.71, 0.86, 1.0)
    sizes = [progressive_size(schedule, epoch, 8, 224) for epoch in range(8)]
    assert sizes == [128, 128, 160, 160, 192, 192, 224, 224]
    assert [progressive_size((0.5, 1.0), epoch, 5, 192) for epoch in range(5)] == [96, 96, 96, 192, 192]
    assert progressive_size((0.5, 1.0), 0, 0.5, 224) == 128
    assert progressive_size((0.5, 1.0), 9, 4.5, 300) == 300
    assert progressive_size((0.1, 1.0), 0, 2, 64) == 32
    assert progressive_size((0.1, 1.0), 0, 2, 28) == 28
    assert progressive_size((), 3, 9, 224) == 224
