"""The method (docs/METHOD.md) as pure functions of arrays and tensors. Imports nothing of ours outside tool/."""
