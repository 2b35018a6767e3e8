"""What each baseline minimises: its losses and the contrast, as one dict of named terms. METHOD 3.7, 8.2, 8.3.

Every function takes the two views (tool.cam.View; view 2 is None for a recipe of one view), the batch's
tool.seam.Target and the tool.recipes.Recipe with its settings, and returns {term: 0-dim tensor}, unweighted.
"""
from tool import contrast
from tool import eps as eps_losses
from tool import seam as seam_losses


def cam(view1, view2, target, recipe):
    """Plain CAM: classification of both views."""
    return seam_losses.classification(view1, view2, target)


def seam(view1, view2, target, recipe):
    """SEAM with contrast; where no term with a weight needs revised CAMs, the views have none."""
    losses = seam_losses.losses if 'pcm' in recipe.needs else seam_losses.classification
    return losses(view1, view2, target) | contrast_terms(view1, view2, target, recipe)


def eps(view1, view2, target, recipe):
    """EPS with SEAM's regularisation and contrast; without revised CAMs, as in seam."""
    if 'pcm' in recipe.needs:
        out = eps_losses.losses(view1, view2, target, recipe.tau, recipe.alpha, recipe.ecr_target)
    else:
        out = eps_losses.plain_losses((view1, view2), target, recipe.tau, recipe.alpha)
    return out | contrast_terms(view1, view2, target, recipe)


def eps_plain(view1, view2, target, recipe):
    """EPS without contrast, on one view."""
    return eps_losses.plain_losses((view1,), target, recipe.tau, recipe.alpha)


def contrast_terms(view1, view2, target, recipe):
    """The contrast terms that have a weight; {} where none has."""
    settings = contrast_settings(recipe)
    return {} if settings is None else contrast.losses(view1, view2, target.label, total=target.pools, **settings)


def contrast_settings(recipe):
    """The keywords of contrast.losses and contrast.pools by a recipe; None where no contrast term has a weight."""
    wanted = [name for name in contrast.TERMS if name in recipe.terms]
    return {'wanted': wanted, 'bg_threshold': recipe.bg_threshold, 'fraction': recipe.prototype_fraction,
            'temperature': recipe.temperature} if wanted else None
