"""tool/metrics.py: against the golden files, and against thresholding the published way, value by value."""
import numpy as np
import pytest
from helpers import golden

from tool.metrics import CURVE, IGNORE, class_iou, confusion, curve_confusions, mean_iou, score_histogram
from voc12.classes import VOC


@pytest.fixture(scope='module')
def case():
    return golden('eval.npz')


def published_prediction(keys, cams, threshold, num_classes):
    """A stack of all classes in float32, background first, and its argmax: ties go to the lower channel."""
    stack = np.zeros((num_classes, *cams.shape[1:]), np.float32)
    stack[keys + 1] = cams
    stack[0] = threshold
    return stack.argmax(0).astype(np.uint8)


def test_scores_of_masks_are_the_published_ones(case):
    counts = sum(confusion(case[f'gt_{i}'], case[f'pred_{i}'], VOC.num_classes) for i in case['names'])
    np.testing.assert_allclose(class_iou(counts), case['class_iou'], atol=1e-6)
    assert mean_iou(counts) == pytest.approx(float(case['miou']), abs=1e-6)


def test_the_curve_is_the_published_one(case):
    histogram = np.zeros((VOC.num_classes, VOC.num_foreground, len(CURVE) + 1), np.int64)
    for i in case['names']:
        gt, present, cams = (case[f'{name}_{i}'] for name in ('gt', 'cam_keys', 'cam'))
        histogram[:, present] += score_histogram(gt, cams, CURVE, VOC.num_classes)
    np.testing.assert_allclose(mean_iou(curve_confusions(histogram)), case['curve'], atol=1e-6)


@pytest.mark.parametrize('seed', range(4))
def test_curve_equals_thresholding_at_every_score(seed):
    """Counts equal to the last pixel: values at, just above and just below the thresholds, ties, negatives, zeros."""
    rng = np.random.default_rng(seed)
    num_classes, shape = 6, (3, 40, 50)
    keys = np.sort(rng.choice(num_classes - 1, shape[0], replace=False))
    grid = rng.choice(CURVE, shape).astype(np.float32)
    cams = rng.choice([0, 1, 2, 3, 4], shape)
    cams = np.choose(cams, [grid, np.nextafter(grid, np.float32(2)), np.nextafter(grid, np.float32(-1)),
                            rng.random(shape, np.float32), rng.choice([0, -1e-5, 1], shape).astype(np.float32)])
    gt = rng.choice([0, *range(1, num_classes), IGNORE], shape[1:]).astype(np.uint8)
    histogram = np.zeros((num_classes, num_classes - 1, len(CURVE) + 1), np.int64)
    histogram[:, keys] = score_histogram(gt, cams, CURVE, num_classes)
    for threshold, counts in zip(CURVE, curve_confusions(histogram)):
        predicted = published_prediction(keys, cams, threshold, num_classes)
        np.testing.assert_array_equal(counts, confusion(gt, predicted, num_classes), err_msg=f'at {threshold}')


def test_confusion_counts_true_rows_and_predicted_columns_and_misses_last():
    gt = np.array([[0, 0, 1, 2, IGNORE]], np.uint8)
    predicted = np.array([[0, 1, 1, IGNORE, 2]], np.uint8)
    counts = confusion(gt, predicted, 3)
    np.testing.assert_array_equal(counts, [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    # Class 2: one true pixel, not predicted (255); the prediction of 2 lies where the ground truth is ignored.
    np.testing.assert_allclose(class_iou(counts), [50, 50, 0], atol=1e-6)
    assert counts.dtype == np.int64  # published: 32-bit counters, which wrap on large sets


@pytest.mark.parametrize('gt, predicted', [(3, 0), (0, 3), (254, 0)])
def test_labels_out_of_range_are_an_error(gt, predicted):
    with pytest.raises(ValueError, match='below 3'):
        confusion(np.full((2, 2), gt, np.uint8), np.full((2, 2), predicted, np.uint8), 3)


def test_ignored_pixels_count_nowhere():
    gt = np.full((4, 5), IGNORE, np.uint8)
    assert confusion(gt, gt, 3).sum() == 0
    assert score_histogram(gt, np.ones((2, 4, 5), np.float32), CURVE, 3).sum() == 0
    assert mean_iou(confusion(gt, gt, 3)) == 0
