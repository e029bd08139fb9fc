"""The declaration of a method: source, published values, needs, and compatible options."""
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The declaration of a method, its class attribute `spec`.

    A loss that needs float32 under --amp declares it by the decorator in_float32 on method_loss.
    """

    # Source
    title: str                  # the method's name in papers
    paper: str                  # authors, venue, arXiv id
    uses: str                   # what the method compares, in a few words
    published: dict = field(default_factory=dict)               # option -> published value, used where it is not given
    published_imagenet: dict = field(default_factory=dict)      # those that differ for ImageNet
    published_logit_stand: dict = field(default_factory=dict)   # those with --logit_stand; empty: no such results
    published_entropy_weights: dict = field(default_factory=dict)       # the same with --entropy_weights

    # Inputs
    needs: tuple = ()           # teacher outputs besides logits: 'embedding', 'feats', 'map', fields of Outputs
    views: tuple = ('weak',)    # augmentation of each view, of dataset.augment.VIEWS; several need the mixin MultiView
    preact_s: bool = False      # feature maps of the student are taken before their ReLU
    preact_t: bool = False      # the same for the teacher
    reads_teacher: bool = False     # uses layers of the teacher, besides its outputs
    stages_s: bool = False      # its own loss reads the student's stages without the teacher's ('feats' in needs)
    features_only: bool = False     # its own loss reads no logits of the teacher, which then needs no classifier
    reads_kd_T: bool = False    # its own loss reads --kd_T, as the soft labels do
    learns_temperature: bool = False    # a learnt temperature replaces --kd_T, also in the soft labels
    auxiliary_teacher: str = '' # the method that trains the auxiliary teacher of --path-t; tables name the original one
    needs_class: bool = False   # each image has one class, so mixup, CutMix and --unlabelled do not apply
    pairwise: bool = False      # compares images within a batch, so a batch has at least two
    drop_last: bool = False     # a short last batch is dropped

    # Training
    learns_classes: bool = True     # False: without labels, its checkpoint has no classifier, so there is no accuracy
    has_method_loss: bool = True    # has a method_loss besides the soft labels
    first_stage: bool = False   # begins with --init_epochs of init_loss; needs the mixin FirstStage
    scheduled_over_epochs: bool = False     # begin_epoch reads `epochs`, so a run cannot be extended
    own_buffers: tuple = ()     # names of buffers that differ between processes within an epoch
    own_backward: bool = False  # `backward` makes the backward passes of a step
    own_optimizer: bool = False     # `make_optimizer` ignores --opt
    changes_student: bool = False   # `student_outputs` changes which logits are trained
    deploys_student: bool = True    # the student is the network that is shipped; False: `inference_net` returns another

    def is_cacheable(self, fields: tuple) -> bool:
        """Return whether training works with stored teacher outputs that have only these fields of Outputs."""
        return not self.first_stage and {*self.needs} <= {*fields}

    @property
    def reads_stages(self) -> bool:
        """Whether it compares the stages of both nets, in a first stage or in its own loss."""
        return self.first_stage or 'feats' in self.needs

    @property
    def is_mixable(self) -> bool:
        """Whether mixup and CutMix apply."""
        return not self.needs_class and len(self.views) == 1
