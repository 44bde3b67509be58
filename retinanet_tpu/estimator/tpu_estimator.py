"""The TPUEstimator of TensorFlow 2: trains, evaluates, predicts, exports."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import (
    checkpoint_saver,
    exporters,
    inference,
    inputs,
    run_config,
    spec,
    summaries,
    train_loop,
    train_step,
    waits,
    warm_start,
)
from retinanet_tpu.estimator.cluster import (
    preemption,
    strategy as strategy_lib,
    worker_group,
)
from retinanet_tpu.estimator.model_dir import checkpoints, files


class TPUEstimator:
    """Runs one model_fn under a strategy, from and to the checkpoints of one model_dir.

    In TensorFlow 2 variables outlive a trace, so beside model_fn two functions make
    them, called once in the strategy's scope: network_fn and update_fn.
    """

    def __init__(
        self,
        model_fn: Callable,
        model_dir: str,
        *,
        network_fn: Callable[[Mapping], tf.Module],
        update_fn: Callable[[tf.Module], Any] | None = None,
        params: Mapping[str, Any] | None = None,
        config: run_config.RunConfig | None = None,
        strategy: tf.distribute.Strategy | None = None,
        strategy_fn: Callable[[], tf.distribute.Strategy] | None = None,
        train_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        predict_batch_size: int | None = None,
        warm_start_from: warm_start.WarmStartSettings | Callable | str | None = None,
    ):
        """Takes functions and sizes; makes no variables yet.

        Args:
          model_fn: (features, labels, mode, params, network) -> TPUEstimatorSpec;
            arguments are matched by name.
          model_dir: where checkpoints, summaries and exports go.
          network_fn: params -> tf.Module whose variables have unique names.
          update_fn: network -> object with `variables` (by checkpoint name),
            `scale(loss)` and `apply(gradients, step)`, which returns scalars to log.
          params: handed to all functions as a copy, plus batch_size per replica.
          config: when to save; how to run.
          strategy: where to run; the default strategy if None.
          strategy_fn: makes the strategy anew after its devices were lost.
          train_batch_size: images of one step over all replicas; so are the others.
          warm_start_from: where a run without a checkpoint takes its weights from;
            settings, just a path, or a function that is called with the network.
        Raises:
          UserError: a batch size that the replicas cannot divide, a reserved param, or
            a model_dir that TensorFlow takes for a pattern.
        """
        self.model_dir = model_dir.rstrip("/")
        files.check_path(self.model_dir, "--model_dir")
        self.config = config or run_config.RunConfig()
        self._strategy_fn = strategy_fn
        self._model_fn, self._network_fn = model_fn, network_fn
        self._update_fn = update_fn
        self._params = params or {}
        self._batch_sizes = {
            spec.ModeKeys.TRAIN: train_batch_size,
            spec.ModeKeys.EVAL: eval_batch_size,
            spec.ModeKeys.PREDICT: predict_batch_size,
        }
        if isinstance(warm_start_from, str):
            warm_start_from = warm_start.WarmStartSettings(warm_start_from)
        has_source = getattr(warm_start_from, "checkpoint", warm_start_from)
        self._warm_start_from = warm_start_from if has_source else None
        self._place(strategy or tf.distribute.get_strategy())

    @property
    def num_replicas(self) -> int:
        """Devices that each take a share of every batch."""
        return self.strategy.num_replicas_in_sync

    def reconnect(self) -> None:
        """Starts anew on devices that were reset; only checkpoints are left."""
        self._place(self._strategy_fn() if self._strategy_fn else self.strategy)

    def train(
        self,
        input_fn: Callable,
        max_steps: int,
        saving_listeners: Sequence[Callable] = (),
        *,
        stop_reason: Callable[[], str | None] = preemption.no_stop,
        before_save: Callable[[], None] = preemption.no_stop,
    ) -> str:
        """Trains up to a global step, going on from the latest checkpoint.

        Args:
          input_fn: (params) -> endless tf.data.Dataset of (features, labels).
          max_steps: absolute; steps of earlier runs count.
          saving_listeners: each is called with (checkpoint path, step) after a save.
          stop_reason: asked between loops, and while one waits for data; a reason
            saves and ends the run.
          before_save: called before a checkpoint is written, on the chief.
        Returns:
          The path of the last checkpoint.
        Raises:
          DivergedError: a loss is not finite; says which and at which step.
          Interrupted: there was a reason to stop; all that was trained is saved.
          UserError: a save interval above max_steps, which never fires.
        """
        self.config.check_save_interval(max_steps)
        if self.config.deterministic:
            strategy_lib.make_deterministic()
        with self.strategy.scope():
            state = train_loop.start(
                self.model_dir,
                lambda: self._network_fn(self._inputs.plain_params()),
                self._update_fn,
                self._warm_start_from,
                self.workers,
            )
        if state.step >= max_steps:
            logging.info("Step %d of %d is trained already", state.step, max_steps)
            return checkpoints.latest(self.model_dir)
        mode = spec.ModeKeys.TRAIN
        step_fn = train_step.make_step_fn(
            state,
            self._model_fn,
            lambda: self._inputs.params(mode),
            deterministic=self.config.deterministic,
        )
        where, batch_size = self.model_dir, self._inputs.batch_size(mode)
        events_dir = where if self.workers.is_chief else None
        train_loop.train(
            state,
            train_loop.TrainLoop(self.strategy, step_fn, self._jit_compile),
            lambda first: iter(self._inputs.dataset(input_fn, mode, first)),
            max_steps=max_steps,
            config=self.config,
            saver=checkpoint_saver.Saver(
                where,
                self.config,
                state.step,
                saving_listeners,
                self.workers,
                before_save,
            ),
            writer=summaries.LoopWriter(events_dir, max_steps, batch_size),
            stop_reason=stop_reason,
            workers=self.workers,
        )
        return checkpoints.latest(self.model_dir)

    def evaluate(
        self,
        input_fn: Callable,
        *,
        steps: int | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
        stop_reason: Callable[[], str | None] = preemption.no_stop,
    ) -> dict[str, Any]:
        """Scores one checkpoint on all that input_fn gives.

        Writes scalars and images under the checkpoint's step to `eval[_name]/`, and
        one line to `eval.jsonl` there.

        Args:
          input_fn: (params) -> finite tf.data.Dataset of (features, labels).
          steps: batches to score, None for all.
          checkpoint_path: None for the latest.
          name: of this evaluation, where there are several.
          stop_reason: asked before each batch; a reason ends it without a result.
        Returns:
          What metric_fn returned, with `loss` (mean over batches) and `global_step`.
        Raises:
          MissingFileError: there is no checkpoint.
          Interrupted: there was a reason to stop.
        """
        start = time.monotonic()
        path = self._checkpoint(checkpoint_path)
        forward = self._forward_pass(spec.ModeKeys.EVAL, path)
        losses = []
        batches = self._batches(
            forward, input_fn, spec.ModeKeys.EVAL, steps, losses, stop_reason
        )
        batches = preemption.stop_when(stop_reason, batches, checkpoints.step_of(path))
        if (first := next(batches, None)) is None:
            raise errors.UserError("The evaluation's input_fn gave no batch at all.")
        batches = itertools.chain([first], batches)
        metrics = forward.metric_fn(batches) if forward.metric_fn else {}
        for _ in batches:  # What metric_fn left, it still counts in the loss.
            pass
        results = dict(metrics) | {
            "loss": float(np.mean(losses)),
            "global_step": checkpoints.step_of(path),
        }
        secs = time.monotonic() - start
        summaries.write_evaluation(self._eval_dir(name), path, results, secs=secs)
        return results

    def scores(self, checkpoint_path: str, name: str | None = None) -> dict | None:
        """Returns the results written of a checkpoint, None if it was not scored."""
        records = summaries.read_evaluations(self._eval_dir(name))
        step = checkpoints.step_of(checkpoint_path)
        return next((r for r in records if r["global_step"] == step), None)

    def predict(
        self, input_fn: Callable, *, checkpoint_path: str | None = None
    ) -> Iterator:
        """Yields the predictions of each global batch as NumPy arrays.

        Args:
          input_fn: (params) -> finite tf.data.Dataset of features.
          checkpoint_path: None for the latest.
        Raises:
          MissingFileError: there is no checkpoint.
        """
        forward = self._forward_pass(
            spec.ModeKeys.PREDICT, self._checkpoint(checkpoint_path)
        )
        yield from self._batches(forward, input_fn, spec.ModeKeys.PREDICT, None, [])

    def export_saved_model(
        self,
        export_dir_base: str,
        serving_fn: Callable,
        *,
        checkpoint_path: str | None = None,
        scores: Mapping[str, Any] | None = None,
    ) -> str:
        """Writes what serves a checkpoint to `export_dir_base/<10-digit time>`.

        Args:
          export_dir_base: such as `<model_dir>/export/latest`.
          serving_fn: (network, params) -> spec.Serving.
          checkpoint_path: None for the latest.
          scores: of the checkpoint, if they are known and not yet written.
        Returns:
          The directory written.
        Raises:
          MissingFileError: there is no checkpoint.
        """
        path = self._checkpoint(checkpoint_path)
        network = self._network_fn(self._inputs.plain_params())
        train_step.load(network, path)
        serving = serving_fn(network, self._inputs.plain_params())
        scores = scores or self.scores(path)
        exported = exporters.export_saved_model(serving, export_dir_base, path, scores)
        logging.info("Exported %s to %s", path, exported)
        return exported

    @property
    def _jit_compile(self):
        """Whether to ask for XLA: a TPU has it anyway, and collectives stay outside."""
        is_tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        wanted = self.config.tpu_config.jit_compile
        return wanted and self.num_replicas == 1 and not is_tpu

    def _place(self, strategy):
        """Takes a strategy, under which nothing is made yet."""
        self.strategy, self.workers = strategy, worker_group.Workers(strategy)
        self._inputs = inputs.Inputs(strategy, self._params, self._batch_sizes)
        self._eval_network, self._forward_passes = None, {}

    def _eval_dir(self, name):
        return f"{self.model_dir}/eval" + (f"_{name}" if name else "")

    def _checkpoint(self, path):
        if found := path or checkpoints.latest(self.model_dir):
            return found
        raise errors.MissingFileError(
            f"No checkpoint in {self.model_dir}; train first or check --model_dir."
        )

    def _forward_pass(self, mode, path):
        """Returns the traced forward pass of a mode, its network loaded from a path."""
        self.workers.check_alone()
        if self._eval_network is None:
            with self.strategy.scope():
                self._eval_network = self._network_fn(self._inputs.plain_params())
        train_step.load(self._eval_network, path)
        if mode not in self._forward_passes:
            self._forward_passes[mode] = inference.ForwardPass(
                self.strategy,
                self._model_fn,
                mode,
                lambda: self._inputs.params(mode),
                network=self._eval_network,
                jit_compile=self._jit_compile,
            )
        return self._forward_passes[mode]

    def _batches(
        self, forward, input_fn, mode, steps, losses, stop_reason=preemption.no_stop
    ):
        """Yields each batch's tensors and notes its loss, until the data end."""
        dataset = self._inputs.dataset(input_fn, mode)
        stall = waits.Stall(stop_reason)
        for batch in itertools.islice(waits.iterate(dataset, stall), steps):
            loss, tensors = forward(batch)
            losses.append(loss)
            yield tensors
