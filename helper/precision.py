"""--amp: the nets compute in 16 bits, the weights stay in 32."""
import torch

from .errors import UserError

KINDS = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


class Precision:
    """Autocast for the forward pass, and for float16 a scaler that keeps small gradients from vanishing."""

    smallest_scale = 2.0 ** -14

    def __init__(self, kind: str | None, device: torch.device):
        """kind: the value of --amp: None, 'auto', 'bfloat16' or 'float16'. auto is bfloat16 where the GPU has it."""
        self.device = device
        if kind == 'auto' and device.type == 'cpu':
            print('--amp: 16 bits are not faster on a CPU: computing in float32; --amp bfloat16 asks for them all the '
                  'same')
            kind = None
        elif kind == 'auto':
            kind = 'bfloat16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'float16'
        self.dtype = KINDS.get(kind)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self):
        """A context for the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def update(self, loss, optimizer) -> None:
        """Backward and one step of the optimiser. float16 leaves a step out whose gradients overflow."""
        optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()

    def check(self) -> None:
        """Raises UserError when the gradients overflow whatever the scale: that is no skipped step, but divergence."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < self.smallest_scale:
            raise UserError(f'--amp float16: the gradients are not finite at any scale (now {self.scaler.get_scale():g}'
                            f'): the run diverged; lower --learning_rate or --beta')
