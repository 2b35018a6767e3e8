"""Step 1's two views of a batch, and what the contrast must know of the total batch beside them. METHOD 3.7."""
import torch

from engine import distributed
from engine.device import autocast, random_state, set_random_state
from tool import contrast, objectives
from tool.cam import resize
from tool.seam import Target


class TrainingViews:
    """What the network makes of the parts of a run's batches, by a recipe.

    net: of Step 1. parts: the run's engine.parts.Parts. amp: precision.
    """

    def __init__(self, net, recipe, parts, amp):
        self.net, self.recipe, self.parts, self.amp, self.ahead = net, recipe, parts, amp, None
        self.pooled = objectives.contrast_settings(recipe) if parts.count > 1 else None

    def of(self, part):
        """A part of a batch → tool.cam.View of the crop and of its small copy (None for a recipe of one view), and the
        seam.Target, with the contrast's pools where the part is not the total batch.
        """
        view1, view2 = self._both(part)
        target = Target(part['label'], part['present'], part.get('saliency')).to(self.parts.device)
        if self.pooled is not None:
            pools = self.ahead or self._pools(*contrast.comparable(view1, view2), target.label)
            target = target._replace(pools=tuple(pool.of(self.parts.part) for pool in pools))
        return view1, view2, target

    def look_ahead(self, batch):
        """Where this process makes its share in several parts, make the pools of the batch, by a pass over the parts
        without gradient. The generators are then where they were, so that the second pass drops what this one did.
        """
        if self.pooled is None or self.parts.micro == 1:
            return
        device = self.parts.device
        start, made = random_state(device), []
        with torch.no_grad():
            for part in self.parts.of(batch):
                made.append((*contrast.comparable(*self._both(part)), part['label'].to(device, non_blocking=True)))
            self.ahead = self._pools(*(torch.cat(maps) for maps in zip(*made)))
        self.parts.end_with(random_state(device))
        set_random_state(start, device)

    def _both(self, part):
        image, size = part['image'].to(self.parts.device, non_blocking=True), self.recipe.view2_size
        image2 = resize(image, (size, size)) if self.recipe.two_views else None
        with autocast(self.parts.device, self.amp):
            return (self.net.view(image, self.recipe.needs),
                    self.net.view(image2, self.recipe.needs) if self.recipe.two_views else None)

    def _pools(self, *maps):
        *maps, label = (distributed.gather(rows) for rows in maps)
        return contrast.pools(maps, label, **self.pooled)
