"""Train a network alone with cross-entropy: a teacher, or a student to compare with."""
if __name__ == '__main__':
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # the shell does not ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C ends the program during imports and reading of data

import helper  # noqa: F401, before torch: it sets how threads wait
from analysis.estimate import estimate
from analysis.evaluate import evaluate
from dataset import get_dataloaders
from distiller_zoo import Vanilla
from helper import distributed
from helper.checkpoint import describe_net
from helper.compile import speed_up
from helper.device import Precision, memory_format, seed_everything
from helper.errors import run_main
from helper.launch import launch
from helper.loops import train_epoch
from helper.optim import adjust_learning_rate
from helper.resume import fingerprint
from helper.run import Run
from helper.run_folder import RunPaths
from models.find import build, check_name, warn_of_size
from models.grad_checkpointing import turn_on_grad_checkpointing
from models.start import load_start
from models.sync_batchnorm import synchronise_batchnorm
from option_checkpoints import open_start, set_preprocessing
from options import teacher_options


def train(opt, device):
    """Train a network. Every process calls this; --batch_size is divided among them in `local`."""
    if opt.evaluate:
        evaluate(opt, device)
        return

    # Data and net
    start = open_start(opt)
    inputs = set_preprocessing(opt, start)
    local = distributed.per_process_options(opt)
    seed_everything(opt.seed, opt.deterministic)
    data = get_dataloaders(local, device, inputs=inputs)
    arch = check_name(opt.model, data.image_size, '--model')
    net = build(arch, data.num_classes, data.image_size, '--model', opt.drop_path)
    warn_of_size(arch, data.image_size, '--model')
    loaded = load_start(net, start, data)
    paths, properties = RunPaths.of_teacher(opt), {**fingerprint(data, net=net), **loaded}
    vanilla = Vanilla(net, opt, data)
    vanilla.to(device, memory_format=memory_format(opt))
    distributed.seed_this_process(opt.seed)
    if opt.sync_bn:
        synchronise_batchnorm(vanilla)
    if opt.grad_checkpointing:
        turn_on_grad_checkpointing(net, data.image_size, f'--model {arch}')
    speed_up(vanilla, local, device)
    optimizer = vanilla.make_optimizer(opt.learning_rate, opt)
    precision = Precision(opt.amp, device)

    def checkpoint():
        return {**vanilla.checkpoint(), 'optimizer': optimizer.state_dict(), **describe_net(arch, data, opt)}

    if opt.estimate:
        estimate(opt, vanilla, data, precision, device, checkpoint)
        return

    # Train
    with Run(opt, paths, vanilla, data.train_loader, properties, precision, checkpoint, data) as run:
        print(f'{arch} on {opt.dataset}: {run.parameters:.3f} M parameters, {data.num_classes} classes, '
              f'{data.sizes}, seed {opt.seed}, {distributed.where(device)}; {data.description}')
        print(data.selection_note)
        module = distributed.wrap(vanilla, device)
        for epoch in run.epochs(optimizer, opt.epochs):
            rate = adjust_learning_rate(epoch, optimizer, opt)
            vanilla.begin_epoch(epoch, opt.epochs)
            module = distributed.rewrap(module, device)
            averages = train_epoch(epoch, data.train_loader, module, optimizer, opt, run, precision)
            test = vanilla.validate(data.selection_loader, run, data.selection_split)
            run.end_epoch(rate, averages, test)
        run.measure_test_set(data.test_loader)


def main():
    launch(train, teacher_options())


if __name__ == '__main__':
    run_main(main)
