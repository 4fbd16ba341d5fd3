"""SAEs attached to a hooked vision model, by the methods of SAELens's `HookedSAETransformer`.

Those methods touch nothing but the hook points of the model they are called on, so they are taken as they
are.
But: there are no tokens with an id in an image, so `exclude_special_tokens` is refused; and a hook that the
model does not have is an error, where SAELens warns and goes on without the SAE.
"""

from typing import Any

from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer, _SAEWrapper
from sae_lens.saes.sae import SAE
from transformer_lens.HookedRootModule import HookedRootModule


class SAEHooks(HookedRootModule):
    """A `HookedRootModule` that SAEs can be attached to; the output of each replaces the activation it
    read."""

    _acts_to_saes: dict[str, _SAEWrapper]
    _transcoder_output_hooks: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self._acts_to_saes = {}
        self._transcoder_output_hooks = {}

    def resolve_hook_name(self, name: str) -> str:
        """The name of an existing hook point, for subclasses to accept other spellings of it.

        Raises:
            ValueError: the model has no such hook.
        """
        raise NotImplementedError

    def add_sae(
        self,
        sae: SAE[Any],
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Attach an SAE at the hook named in its metadata, until `reset_saes`; one already there is replaced.

        Args:
            sae: the SAE, or a transcoder (`metadata.hook_name_out`).
            use_error_term: add what the SAE misses back to its output, so that the model computes what it
                would without it; None keeps the SAE's own setting.
            exclude_special_tokens: must be False.

        Raises:
            ValueError: the SAE names no hook, or one that the model has not; or tokens were to be excluded.
        """
        if exclude_special_tokens is not False:
            raise ValueError("exclude_special_tokens has no meaning for images; leave it out.")
        names = [sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out]
        if not names[0]:
            raise ValueError("The SAE does not say where it belongs: its metadata has no hook_name.")
        for name in filter(None, names):
            if name not in self._acts_to_saes and self.resolve_hook_name(name) != name:
                raise ValueError(
                    f"The SAE's hook {name!r} is written in a short form; set it to "
                    f"{self.resolve_hook_name(name)!r} before attaching it."
                )
        HookedSAETransformer.add_sae(self, sae, use_error_term)  # type: ignore[arg-type]

    acts_to_saes = HookedSAETransformer.acts_to_saes
    reset_saes = HookedSAETransformer.reset_saes
    saes = HookedSAETransformer.saes
    run_with_saes = HookedSAETransformer.run_with_saes
    run_with_cache_with_saes = HookedSAETransformer.run_with_cache_with_saes
    run_with_hooks_with_saes = HookedSAETransformer.run_with_hooks_with_saes
    _reset_sae = HookedSAETransformer._reset_sae
