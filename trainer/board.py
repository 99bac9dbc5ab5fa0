"""What a training shows of itself: TensorBoard's log, and how busy the device was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from detector.errors import InputError
from trainer.crnn import CRNN
from trainer.evaluation import METRICS, Figures
from trainer.hear import Batch, hear
from trainer.plots import confusion, spectrograms


class Board:
    """TensorBoard's log in a folder; without one, nothing is written. What a resumed training writes anew replaces the old."""

    def __init__(self, folder: Path | None, epoch: int) -> None:
        try:
            self.writer = SummaryWriter(str(folder), purge_step=epoch + 1) if folder else None
        except OSError as error:
            raise InputError(str(folder), f"cannot hold TensorBoard's log ({error.strerror})", "remove what is there") from error

    def epoch(
        self, epoch: int, loss: float, validation: Figures, rate: float, norms: list[float], wall_s: float, busy: float
    ) -> None:
        """Losses, rate, gradient, validation figures per label and as a confusion matrix, and what the epoch cost."""
        if self.writer is None:
            return
        values = {"loss/train": loss, "loss/validation": validation.loss, "train/learning_rate": rate}
        values |= {f"validation/{name}": getattr(validation, name) for name in METRICS if name != "loss"}
        values |= {"train/epoch_s": wall_s, "train/device_busy": busy}
        if norms:
            values["train/gradient_norm"] = sum(norms) / len(norms)
        for label, figures in validation.per_label.items():
            values |= {f"recall/{label}": figures.recall, f"precision/{label}": figures.precision, f"f1/{label}": figures.f1}
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.add_figure("validation/confusion", confusion(validation.confusion, validation.labels, f"epoch {epoch}"), epoch)
        self.writer.flush()

    def spectrograms(self, model: CRNN, batch: Batch, labels: tuple[str, ...], epoch: int) -> None:
        """Eight examples as the network hears them, augmented."""
        if self.writer is None:
            return
        with torch.no_grad():
            features = hear(model.frontend, batch, len(labels)).features[:: batch.channels][:8].float().cpu().numpy()
        names = [labels[target] if target >= 0 else "background" for target in batch.target[:8].tolist()]
        self.writer.add_figure("examples", spectrograms(list(features), names), epoch)

    def close(self, validation: Figures, test: Figures | None, step: int) -> None:
        """The figures of the best epoch, as text and as confusion matrices, at the step after the last."""
        if self.writer is None:
            return
        for name, figures in (("validation", validation), ("test", test)):
            if figures:
                self.writer.add_text(f"best/{name}", f"accuracy {figures.accuracy:.1%}, macro F1 {figures.f1:.1%}", step)
                self.writer.add_figure(f"best/{name}_confusion", confusion(figures.confusion, figures.labels, name), step)
        self.writer.close()


class DeviceTime:
    """Seconds that the device had work: from a step's first operation to its last, by events on a GPU, by the clock on a CPU.

    What lies between steps, waiting for the next batch and checkpoints, is not counted; a pause inside a step is.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.worked_s = 0.0
        self.began = 0.0
        self.events: list[Any] = []

    def __enter__(self) -> None:
        self._mark()
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._mark()
        self.worked_s += time.perf_counter() - self.began

    def _mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.events.append(event)

    def seconds(self) -> float:
        if not self.cuda:
            return self.worked_s
        torch.cuda.synchronize()
        return float(sum(first.elapsed_time(last) for first, last in zip(self.events[::2], self.events[1::2], strict=True))) / 1000
