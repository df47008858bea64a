"""Names of Lightning that are not public and that nothing public replaces: this fails when they change."""

import inspect

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


def test_a_trainer_registers_signal_handlers_by_a_method_that_a_run_can_switch_off():
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    assert isinstance(trainer._signal_connector, _SignalConnector)
    assert list(inspect.signature(_SignalConnector.register_signal_handlers).parameters) == ["self"]
    assert "register_signal_handlers" in inspect.getsource(Trainer._run)


def test_a_training_loop_asks_a_method_whether_epochs_can_be_left_unfinished():
    assert list(inspect.signature(_FitLoop._iteration_based_training).parameters) == ["self"]
    assert "_iteration_based_training()" in inspect.getsource(_FitLoop.restarting.fset)


def test_a_checkpoint_can_write_the_line_of_its_step_first():
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    assert isinstance(trainer._logger_connector, _LoggerConnector)
    assert list(inspect.signature(_LoggerConnector.update_train_step_metrics).parameters) == ["self"]
