"""Environments: one batched dynamics, and its skins for Gymnasium and TorchRL."""
