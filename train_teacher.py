"""Train a network alone with cross-entropy: a teacher, or a student to compare with."""
if __name__ == '__main__':
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # not where the shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C during the imports and while the data is read

import helper  # noqa: F401, before torch: it sets how threads wait
from dataset import get_dataloaders
from dataset.batch_augment import BatchAugment, mixes
from distiller_zoo import Vanilla, load_inference_net
from helper import distributed
from helper.compile import speed_up
from helper.device import Precision, memory_format, seed_everything
from helper.errors import run_main
from helper.estimate import estimate
from helper.launch import launch
from helper.loops import train_epoch, validate
from helper.optim import adjust_learning_rate
from helper.records import show_evaluation
from helper.resume import fingerprint
from helper.run import Run
from helper.run_folder import RunPaths
from models.find import build, check_name
from models.load import open_checkpoint, warn_of_size
from options import take_image_size, teacher_options, warn_of_split


def train(opt, device):
    """What every process does. opt has the batch of all processes, `local` that of this one."""
    if opt.evaluate:
        checkpoint = open_checkpoint(opt.evaluate, '--evaluate', opt.checkpoint_key)
        take_image_size(opt, checkpoint, f'--evaluate {opt.evaluate}')
        warn_of_split(opt, checkpoint, f'--evaluate {opt.evaluate}')
    local = distributed.per_process_options(opt)
    seed_everything(opt.seed, opt.deterministic)
    data = get_dataloaders(local, device, mixes(opt))
    if opt.evaluate:
        name, net = load_inference_net(opt.evaluate, data, '--evaluate', checkpoint=checkpoint)
        net.to(device, memory_format=memory_format(opt))
        show_evaluation(name, validate(data.test_loader, net, source=f'--evaluate {opt.evaluate}'))
        return

    # Build
    arch = check_name(opt.model, data.image_size, '--model')
    net = build(arch, data.num_classes, data.image_size, '--model', opt.drop_path)
    warn_of_size(arch, data.image_size, '--model')
    paths, facts = RunPaths.of_teacher(opt), fingerprint(data, net=net)
    vanilla = Vanilla(net, opt, data)
    vanilla.to(device, memory_format=memory_format(opt))
    distributed.seed_this_process(opt.seed)
    if opt.sync_bn:
        distributed.synchronise_batchnorm(vanilla)
    speed_up(vanilla, local, device)
    optimizer = vanilla.make_optimizer(opt.learning_rate, opt)
    if mixes(opt) or opt.reprob:
        data.train_loader = BatchAugment(data.train_loader, local, data.num_classes, device)
    precision = Precision(opt.amp, device)

    def checkpoint():
        return {**vanilla.checkpoint(), 'optimizer': optimizer.state_dict(), 'arch': arch,
                'num_classes': data.num_classes, 'inputs': data.inputs, 'classes': [*data.classes],
                'split': opt.split}

    if opt.estimate:
        estimate(opt, vanilla, data, precision, device, checkpoint)
        return

    # Train
    with Run(opt, paths, vanilla, data.train_loader, facts, precision, checkpoint, data.split) as run:
        print(f'{arch} on {opt.dataset}: {run.parameters:.3f} M parameters, {data.num_classes} classes, '
              f'{data.sizes}, seed {opt.seed}, {distributed.where(device)}')
        module = distributed.wrap(vanilla, device)
        for epoch in run.epochs(optimizer, opt.epochs):
            rate = adjust_learning_rate(epoch, optimizer, opt)
            vanilla.begin_epoch(epoch, opt.epochs)
            averages = train_epoch(epoch, data.train_loader, module, optimizer, opt, run, precision)
            run.end_epoch(rate, averages, validate(data.test_loader, vanilla.inference_net(), run))


def main():
    launch(train, teacher_options())


if __name__ == '__main__':
    run_main(main)
