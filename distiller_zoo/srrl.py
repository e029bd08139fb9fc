"""The method srrl; its loss is in criteria/srrl.py."""
from .base import Distiller, Spec
from .criteria.srrl import SRRLLoss, SRRLTransfer


class SRRLDistiller(Distiller):
    spec = Spec(
        title='SRRL', paper='Yang et al., ICLR 2021', uses="embedding, the teacher's classifier",
        published={'beta': 1.0}, needs=('embedding',), reads_teacher=True)

    def build(self, opt, data, shapes_s, shapes_t):
        self.transfer = SRRLTransfer(*shapes_s.embedding, *shapes_t.embedding)
        self.criterion = SRRLLoss()

    def method_loss(self, out_s, out_t, target, index):
        h = self.transfer(out_s.embedding)
        logits_st = self.teacher.get_classifier()(self.teacher.hidden(h))
        return self.criterion(h, out_t.embedding, logits_st, out_t.logits)
