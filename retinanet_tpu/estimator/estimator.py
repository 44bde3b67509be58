"""The TPUEstimator of TensorFlow 2: trains, evaluates, predicts, exports."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import replicas
from retinanet_tpu.estimator import (
    checkpoints,
    config as config_lib,
    exporters,
    inference,
    inputs,
    spec,
    summaries,
    training,
    warm_start,
)


class TPUEstimator:
    """Runs one model_fn under a strategy, from and to the checkpoints of one model_dir.

    In TensorFlow 2 variables outlive a trace, so beside model_fn there are two
    functions that make them, called once in the strategy's scope: network_fn and
    update_fn.
    """

    def __init__(
        self,
        model_fn: Callable,
        model_dir: str,
        *,
        network_fn: Callable[[Mapping], tf.Module],
        update_fn: Callable[[tf.Module], Any] | None = None,
        params: Mapping[str, Any] | None = None,
        config: config_lib.RunConfig | None = None,
        strategy: tf.distribute.Strategy | None = None,
        train_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        predict_batch_size: int | None = None,
        warm_start_from: warm_start.WarmStartSettings | str | None = None,
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
          train_batch_size: images of one step over all replicas; so are the others.
          warm_start_from: where a run without a checkpoint takes its weights from;
            settings, or just a path.
        Raises:
          ValueError: a batch size that the replicas cannot divide, or a reserved param.
        """
        self.model_dir = model_dir.rstrip("/")
        self.config = config or config_lib.RunConfig()
        self.strategy = strategy or tf.distribute.get_strategy()
        self._model_fn, self._network_fn = model_fn, network_fn
        self._update_fn = update_fn
        batch_sizes = {
            spec.ModeKeys.TRAIN: train_batch_size,
            spec.ModeKeys.EVAL: eval_batch_size,
            spec.ModeKeys.PREDICT: predict_batch_size,
        }
        self._inputs = inputs.Inputs(self.strategy, params or {}, batch_sizes)
        if isinstance(warm_start_from, str):
            warm_start_from = warm_start.WarmStartSettings(warm_start_from)
        has_source = warm_start_from and warm_start_from.checkpoint
        self._warm_start_from = warm_start_from if has_source else None
        self._eval_network, self._forward_passes = None, {}

    @property
    def num_replicas(self) -> int:
        """Devices that each take a share of every batch."""
        return self.strategy.num_replicas_in_sync

    def train(
        self,
        input_fn: Callable,
        max_steps: int,
        saving_listeners: Sequence[Callable] = (),
    ) -> str:
        """Trains up to a global step, going on from the latest checkpoint.

        Args:
          input_fn: (params) -> endless tf.data.Dataset of (features, labels).
          max_steps: absolute; steps of earlier runs count.
          saving_listeners: each is called with (checkpoint path, step) after a save.
        Returns:
          The path of the last checkpoint.
        Raises:
          DivergedError: a loss is not finite; says which and at which step.
          ValueError: a save interval above max_steps, which never fires.
        """
        self.config.check_save_interval(max_steps)
        state = self._make_state()
        if state.step >= max_steps:
            logging.info(
                "Skipping training: step %d of %d is saved.", state.step, max_steps
            )
            return checkpoints.latest(self.model_dir)
        iterator = iter(self._inputs.dataset(input_fn, spec.ModeKeys.TRAIN, state.step))
        run_loop = training.make_train_loop(
            self.strategy,
            training.make_step_fn(
                state, self._model_fn, lambda: self._inputs.params(spec.ModeKeys.TRAIN)
            ),
            jit_compile=self._jit_compile,
        )
        writer = summaries.LoopWriter(
            self.model_dir, max_steps, self._inputs.batch_size(spec.ModeKeys.TRAIN)
        )
        saved_at = time.monotonic()
        while state.step < max_steps:
            num_steps = self.config.next_stop(state.step, max_steps) - state.step
            result = run_loop(iterator, state.step, num_steps)
            state.step += num_steps
            writer.report_loop(state.step, num_steps, result.scalars, secs=result.secs)
            secs = time.monotonic() - saved_at
            if self.config.is_save_due(state.step, max_steps, secs):
                path = self._save(state)
                for listener in saving_listeners:
                    listener(path, state.step)
                saved_at = time.monotonic()
        return path

    def evaluate(
        self,
        input_fn: Callable,
        *,
        steps: int | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Scores one checkpoint on all that input_fn gives.

        Writes scalars and pictures under the checkpoint's step to `eval[_name]/`, and
        one line to `eval.jsonl` there.

        Args:
          input_fn: (params) -> finite tf.data.Dataset of (features, labels).
          steps: batches to score, None for all.
          checkpoint_path: None for the latest.
          name: of this evaluation, where there are several.
        Returns:
          What metric_fn returned, with `loss` (mean over batches) and `global_step`.
        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        start = time.monotonic()
        path = self._checkpoint(checkpoint_path)
        forward = self._forward_pass(spec.ModeKeys.EVAL, path)
        losses = []
        batches = self._batches(forward, input_fn, spec.ModeKeys.EVAL, steps, losses)
        first = next(batches, None)
        if first is None:
            raise ValueError("The evaluation's input_fn gave no batch at all.")
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

    def is_scored(self, checkpoint_path: str, name: str | None = None) -> bool:
        """Tells whether an evaluation of a checkpoint was written before."""
        records = summaries.read_evaluations(self._eval_dir(name))
        step = checkpoints.step_of(checkpoint_path)
        return any(record["global_step"] == step for record in records)

    def predict(
        self, input_fn: Callable, *, checkpoint_path: str | None = None
    ) -> Iterator:
        """Yields the predictions of each global batch as NumPy arrays.

        Args:
          input_fn: (params) -> finite tf.data.Dataset of features.
          checkpoint_path: None for the latest.
        Raises:
          FileNotFoundError: there is no checkpoint.
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
    ) -> str:
        """Writes a SavedModel of a checkpoint to `export_dir_base/<10-digit time>`.

        Args:
          export_dir_base: such as `<model_dir>/export/latest`.
          serving_fn: (network, params) -> (module, signatures, texts for assets.extra).
          checkpoint_path: None for the latest.
        Returns:
          The directory written.
        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        path = self._checkpoint(checkpoint_path)
        network = self._network_fn(self._inputs.plain_params())
        self._load(network, path)
        module, signatures, assets = serving_fn(network, self._inputs.plain_params())
        exported = exporters.export_saved_model(
            module, export_dir_base, signatures=signatures, assets_extra=assets
        )
        logging.info("Exported %s to %s", path, exported)
        return exported

    @property
    def _jit_compile(self):
        """Whether to ask for XLA: a TPU has it anyway, and collectives stay outside."""
        is_tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        wanted = self.config.tpu_config.jit_compile
        return wanted and self.num_replicas == 1 and not is_tpu

    def _eval_dir(self, name):
        return f"{self.model_dir}/eval" + (f"_{name}" if name else "")

    def _make_state(self):
        """Returns the state of the latest checkpoint, or a new one."""
        logging.info("Looking for checkpoints in %s", self.model_dir)
        path = checkpoints.latest(self.model_dir)
        with self.strategy.scope():
            network = self._network_fn(self._inputs.plain_params())
            if not path and self._warm_start_from:
                warm_start.warm_start(network, self._warm_start_from)
            # After the warm start: averages begin as copies of the weights.
            state = training.TrainState(network, self._update_fn(network))
        if path:
            state.restore(path)
            logging.info("Going on from %s", path)
        elif not self._warm_start_from:
            logging.warning("No checkpoint found; starting from random weights")
        return state

    def _save(self, state):
        path = state.save(self.model_dir)
        checkpoints.prune(self.model_dir, self.config.keep_checkpoint_max)
        logging.info("Saved %s", path)
        return path

    def _checkpoint(self, path):
        path = path or checkpoints.latest(self.model_dir)
        if path is None:
            raise FileNotFoundError(
                f"No checkpoint in {self.model_dir}; train first or check --model_dir."
            )
        return path

    def _load(self, network, path):
        weights = {replicas.path(v): v for v in network.variables}
        training.assign(weights, training.network_weights(path), path)

    def _forward_pass(self, mode, path):
        """Returns the traced forward pass of a mode, its network loaded from a path."""
        if self._eval_network is None:
            with self.strategy.scope():
                self._eval_network = self._network_fn(self._inputs.plain_params())
        self._load(self._eval_network, path)
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

    def _batches(self, forward, input_fn, mode, steps, losses):
        """Yields each batch's tensors and notes its loss."""
        for batch in itertools.islice(self._inputs.dataset(input_fn, mode), steps):
            loss, tensors = forward(batch)
            losses.append(loss)
            yield tensors
