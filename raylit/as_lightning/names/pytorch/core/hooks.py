"""Lightning's place for the hooks of a module, in four classes of its own cut."""

from raylit.core.datamodule import LightningDataModule
from raylit.core.hooks import ModuleHooks

ModelHooks = ModuleHooks


class DataHooks:
    """Hooks that give data; modules and datamodules have them."""

    prepare_data = LightningDataModule.prepare_data
    setup = LightningDataModule.setup
    teardown = LightningDataModule.teardown
    train_dataloader = LightningDataModule.train_dataloader
    val_dataloader = LightningDataModule.val_dataloader
    test_dataloader = LightningDataModule.test_dataloader
    predict_dataloader = LightningDataModule.predict_dataloader
    transfer_batch_to_device = LightningDataModule.transfer_batch_to_device
    on_before_batch_transfer = LightningDataModule.on_before_batch_transfer
    on_after_batch_transfer = LightningDataModule.on_after_batch_transfer


class CheckpointHooks:
    """Hooks around checkpoints; modules have them."""

    on_save_checkpoint = ModuleHooks.on_save_checkpoint
    on_load_checkpoint = ModuleHooks.on_load_checkpoint


__all__ = ["CheckpointHooks", "DataHooks", "ModelHooks"]
