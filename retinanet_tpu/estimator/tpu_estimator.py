"""The TPUEstimator of TensorFlow 2, which trains, evaluates, predicts and exports."""

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
from retinanet_tpu.estimator.cluster import pjrt_strategy, preemption
from retinanet_tpu.estimator.cluster.strategy import make_deterministic
from retinanet_tpu.estimator.engines import distribute, engine, pjrt_engine
from retinanet_tpu.estimator.model_dir import checkpoints, files


class TPUEstimator:
    """A model_fn that runs under a strategy, with the checkpoints of one model_dir.

    In TensorFlow 2 variables outlive a trace. Therefore two functions beside model_fn
    create them: network_fn and update_fn, which are called in the strategy's scope.

    Attributes:
      model_dir: The directory of checkpoints, summaries and exports.
      config: The settings of saving and execution.
      strategy: The strategy that the model runs under.
      workers: The workers of the strategy.
    """

    def __init__(
        self,
        model_fn: spec.ModelFn,
        model_dir: str,
        *,
        network_fn: spec.NetworkFn,
        update_fn: spec.UpdateFn | None = None,
        params: Mapping[str, Any] | None = None,
        config: run_config.RunConfig | None = None,
        strategy: tf.distribute.Strategy | None = None,
        strategy_fn: Callable[[], tf.distribute.Strategy] | None = None,
        train_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        predict_batch_size: int | None = None,
        warm_start_from: warm_start.Source = None,
    ):
        """Initializes the estimator; creates no variables yet.

        Args:
          model_fn: (features, labels, mode, params, network) -> TPUEstimatorSpec;
            arguments are matched by name.
          model_dir: The directory of checkpoints, summaries and exports.
          network_fn: params -> tf.Module whose variables have unique names.
          update_fn: network -> object with `variables` (by checkpoint name),
            `scale(loss)` and `apply(gradients, step)`, which returns scalars to log.
            Required to train.
          params: The parameters of all functions. Each gets a copy, with batch_size per
            replica.
          config: The settings of saving and execution.
          strategy: The strategy to run under; None for TensorFlow's default.
          strategy_fn: Makes a new strategy after the devices were lost.
          train_batch_size: The number of images of a training step over all replicas.
          eval_batch_size: The same for an evaluation step.
          predict_batch_size: The same for a prediction step.
          warm_start_from: The source of the weights of a run without a checkpoint:
            settings, a path, or a function that is called with the network.
        Raises:
          UserError: A batch size is not a multiple of the replicas, a param is
            reserved, or TensorFlow would read model_dir as a pattern.
        """
        self.model_dir = model_dir.rstrip("/")
        files.check_path(self.model_dir, "--model_dir")
        self.config = config or run_config.RunConfig()
        self._strategy_fn = strategy_fn
        self._model_fn = model_fn
        self._network_fn = network_fn
        self._update_fn = update_fn
        self._params = params or {}
        self._batch_sizes = {
            spec.ModeKeys.TRAIN: train_batch_size,
            spec.ModeKeys.EVAL: eval_batch_size,
            spec.ModeKeys.PREDICT: predict_batch_size,
        }
        self._warm_start_fn = warm_start.make_warm_start_fn(warm_start_from)
        self._place(strategy or tf.distribute.get_strategy())

    @property
    def num_replicas(self) -> int:
        """The number of devices that each take a share of every batch."""
        return self.strategy.num_replicas_in_sync

    def reconnect(self) -> None:
        """Discards all variables and uses the devices anew, after they were reset."""
        self._place(self._strategy_fn() if self._strategy_fn else self.strategy)

    def train(
        self,
        input_fn: spec.InputFn,
        max_steps: int,
        saving_listeners: Sequence[spec.SavingListener] = (),
        *,
        stop_reason: spec.StopReason = preemption.no_stop,
        before_save: Callable[[], None] = preemption.no_stop,
    ) -> str | None:
        """Trains up to a global step, from the latest checkpoint if there is one.

        Args:
          input_fn: (params) -> endless tf.data.Dataset of (features, labels).
          max_steps: The global step to train up to; steps of earlier runs count.
          saving_listeners: Each is called with (checkpoint path, step) after a save.
          stop_reason: Returns why to stop, or None. Called between loops, and while a
            loop waits for data. A reason saves and ends the run.
          before_save: Called before a checkpoint is written, on the chief.
        Returns:
          The path of the last checkpoint; None on a worker that does not see it.
        Raises:
          DivergedError: A loss is not finite; contains its name and the step.
          Preempted: There was a reason to stop; all trained steps are saved.
          UserError: The save interval is above max_steps, or update_fn is None.
        """
        self.config.check_save_interval(max_steps)
        if self._update_fn is None:
            raise errors.UserError("TPUEstimator.update_fn is None; training needs it.")
        if self.config.deterministic:
            make_deterministic()
        with self.strategy.scope():
            state = train_loop.start(
                self.model_dir,
                lambda: self._network_fn(self._inputs.plain_params()),
                self._update_fn,
                warm_start_fn=self._warm_start_fn,
                workers=self.workers,
            )
        if state.step >= max_steps:
            logging.info("Step %d of %d is already trained", state.step, max_steps)
            return checkpoints.latest(self.model_dir)
        mode = spec.ModeKeys.TRAIN
        step_fn = train_step.make_step_fn(
            state,
            self._model_fn,
            lambda: self._inputs.params(mode),
            deterministic=self.config.deterministic,
        )
        saver = checkpoint_saver.Saver(
            self.model_dir,
            self.config,
            first_step=state.step,
            listeners=saving_listeners,
            workers=self.workers,
            before_save=before_save,
        )
        writer = summaries.LoopWriter(
            self.model_dir if self.workers.is_chief else None,
            max_steps,
            self._inputs.batch_size(mode),
        )
        train_loop.train(
            state,
            self._engine.make_loop(state, step_fn),
            lambda first: iter(self._inputs.dataset(input_fn, mode, first)),
            max_steps=max_steps,
            config=self.config,
            saver=saver,
            writer=writer,
            stop_reason=stop_reason,
            workers=self.workers,
        )
        return checkpoints.latest(self.model_dir)

    def evaluate(
        self,
        input_fn: spec.InputFn,
        *,
        steps: int | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
        stop_reason: spec.StopReason = preemption.no_stop,
    ) -> dict[str, Any]:
        """Evaluates one checkpoint on the data of input_fn.

        Writes scalars and images under the checkpoint's step to `eval[_name]/`, and one
        line to `eval.jsonl` there.

        Args:
          input_fn: (params) -> finite tf.data.Dataset of (features, labels).
          steps: The number of batches to evaluate; None for all.
          checkpoint_path: The checkpoint; None for the latest.
          name: The name of this evaluation, if there are several.
          stop_reason: Returns why to stop, or None. Called before each batch. A reason
            ends the evaluation without a result.
        Returns:
          The results of metric_fn, with `loss` (mean over batches) and `global_step`.
        Raises:
          MissingFileError: There is no checkpoint.
          Preempted: There was a reason to stop.
          UserError: input_fn returned no batch.
        """
        start = time.monotonic()
        path = self._checkpoint(checkpoint_path)
        metric_fn, outputs = self._evaluate(path, input_fn, steps, stop_reason)
        return self._compute_results(metric_fn, outputs, path, name, start)

    def start_evaluation(
        self,
        input_fn: spec.InputFn,
        *,
        steps: int | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
        stop_reason: spec.StopReason = preemption.no_stop,
    ) -> Callable[[], dict[str, Any]]:
        """Runs the forward passes of `evaluate`, and leaves the rest to a function.

        The eval tensors of all batches are in the host's memory until it has run.

        Args:
          input_fn, steps, checkpoint_path, name, stop_reason: See `evaluate`.
        Returns:
          The function that computes, writes and returns the results. It uses no
          variable of the devices, so that a thread can run it while they train.
        Raises:
          MissingFileError, Preempted, UserError: See `evaluate`.
        """
        start = time.monotonic()
        path = self._checkpoint(checkpoint_path)
        metric_fn, outputs = self._evaluate(path, input_fn, steps, stop_reason)
        computed = list(outputs)
        return lambda: self._compute_results(
            metric_fn, iter(computed), path, name, start
        )

    def evaluation_results(
        self, checkpoint_path: str, name: str | None = None
    ) -> dict[str, Any] | None:
        """Returns the recorded results of a checkpoint; None if it has none."""
        records = summaries.read_evaluations(summaries.eval_dir(self.model_dir, name))
        step = checkpoints.step_of(checkpoint_path)
        return next((r for r in records if r["global_step"] == step), None)

    def predict(
        self, input_fn: spec.InputFn, *, checkpoint_path: str | None = None
    ) -> Iterator[Any]:
        """Yields the predictions of each global batch as NumPy arrays.

        Args:
          input_fn: (params) -> finite tf.data.Dataset of features.
          checkpoint_path: The checkpoint; None for the latest.
        Raises:
          MissingFileError: There is no checkpoint.
        """
        mode = spec.ModeKeys.PREDICT
        _, run = self._load_forward(mode, self._checkpoint(checkpoint_path))
        for _, predictions in self._forward_outputs(run, input_fn, mode):
            yield predictions

    def export_saved_model(
        self,
        export_dir_base: str,
        serving_fn: spec.ServingFn,
        *,
        checkpoint_path: str | None = None,
        eval_result: Mapping[str, Any] | None = None,
    ) -> str:
        """Exports a checkpoint to `export_dir_base/<10-digit time>`.

        Args:
          export_dir_base: The directory of the exports, such as
            `<model_dir>/export/latest`.
          serving_fn: (network, params) -> spec.Serving.
          checkpoint_path: The checkpoint; None for the latest.
          eval_result: The results of its evaluation; None reads the recorded ones.
        Returns:
          The new directory.
        Raises:
          MissingFileError: There is no checkpoint.
        """
        path = self._checkpoint(checkpoint_path)
        network = self._network_fn(self._inputs.plain_params())
        train_step.load(network, path)
        serving = serving_fn(network, self._inputs.plain_params())
        eval_result = eval_result or self.evaluation_results(path)
        directory = exporters.export_saved_model(
            serving, export_dir_base, path, eval_result
        )
        logging.info("Exported %s to %s", path, directory)
        return directory

    def _place(self, strategy):
        """Sets the strategy and discards what was created under another one."""
        self.strategy = strategy
        self._engine = _make_engine(strategy, self.config)
        self.workers = self._engine.workers
        self._inputs = inputs.Inputs(strategy, self._params, self._batch_sizes)
        self._eval_network = None
        self._forwards = {}

    def _checkpoint(self, path):
        """Returns a path, or that of the latest checkpoint."""
        if checkpoint := path or checkpoints.latest(self.model_dir):
            return checkpoint
        raise errors.MissingFileError(
            f"No checkpoint in {self.model_dir}; train first or check --model_dir."
        )

    def _load_forward(self, mode, path):
        """Returns the forward pass of a mode with the weights of a checkpoint.

        Returns:
          The inference.ReplicaForward, and the function that runs it on all replicas.
        """
        self.workers.check_alone()
        if self._eval_network is None:
            with self.strategy.scope():
                self._eval_network = self._network_fn(self._inputs.plain_params())
        train_step.load(self._eval_network, path)
        if mode not in self._forwards:
            forward = inference.ReplicaForward(
                self._model_fn,
                mode,
                lambda: self._inputs.params(mode),
                self._eval_network,
            )
            self._forwards[mode] = forward, self._engine.make_forward(forward.run)
        forward, run = self._forwards[mode]
        run.reload()
        return forward, run

    def _evaluate(self, path, input_fn, steps, stop_reason):
        """Returns metric_fn, and an iterator over (loss, eval tensors) of batches."""
        mode = spec.ModeKeys.EVAL
        forward, run = self._load_forward(mode, path)
        outputs = self._forward_outputs(
            run, input_fn, mode, steps=steps, stop_reason=stop_reason
        )
        outputs = preemption.stop_when(stop_reason, outputs, checkpoints.step_of(path))
        # The first batch traces model_fn, which returns metric_fn.
        if (first := next(outputs, None)) is None:
            raise errors.UserError("The input_fn of the evaluation returned no batch.")
        return forward.metric_fn, itertools.chain([first], outputs)

    def _compute_results(self, metric_fn, outputs, path, name, start):
        """Computes, writes and returns the results of an evaluation."""
        batches = inference.EvaluatedBatches(outputs)
        metrics = metric_fn(batches) if metric_fn else {}
        for _ in batches:  # The loss includes batches that metric_fn did not read.
            pass
        loss = float(np.mean(batches.losses))
        results = {**metrics, "loss": loss, "global_step": checkpoints.step_of(path)}
        secs = time.monotonic() - start
        summaries.write_evaluation(
            summaries.eval_dir(self.model_dir, name), path, results, secs=secs
        )
        return results

    def _forward_outputs(
        self, run, input_fn, mode, *, steps=None, stop_reason=preemption.no_stop
    ):
        """Yields (loss, tensors) of each batch, until the data end."""
        dataset = self._inputs.dataset(input_fn, mode)
        stall = waits.Stall(stop_reason)
        for batch in itertools.islice(waits.iterate(dataset, stall), steps):
            yield run(batch)


def _make_engine(
    strategy: tf.distribute.Strategy, config: run_config.RunConfig
) -> engine.Engine:
    """Returns the engine that runs the replicas of a strategy."""
    if isinstance(strategy, pjrt_strategy.PjrtStrategy):
        return pjrt_engine.PjrtEngine(strategy)
    jit_compile = config.tpu_config.jit_compile
    return distribute.DistributeEngine(strategy, jit_compile=jit_compile)
