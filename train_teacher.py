"""Train a network alone with cross-entropy: a teacher, or a student to compare with."""
if __name__ == '__main__':
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # not where the shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C during the imports and while the data is read

import time

from dataset import get_dataloaders
from helper import distributed
from helper.checkpoint import load_checkpoint, load_net, teacher_name
from helper.device import memory_format, seed_everything
from helper.errors import run_main
from helper.launch import launch
from helper.loops import adjust_learning_rate, train_vanilla, validate
from helper.options import teacher_options
from helper.precision import Precision
from helper.resume import Keeper, data_facts
from helper.run_log import RunLog, show_evaluation
from helper.speed import prepare_step, sgd
from models import model_dict, resolve


def evaluate(opt, data, device):
    """Measure the checkpoint of --evaluate."""
    checkpoint = load_checkpoint(opt.evaluate, '--evaluate')
    name = teacher_name(opt.evaluate, checkpoint, '--evaluate')
    net = load_net(opt.evaluate, checkpoint, name, data, '--evaluate').to(device, memory_format=memory_format(opt))
    show_evaluation(name, validate(data.test_loader, net))


def train(opt, device):
    """What every process does; distributed.share(opt) is its part of the batch."""
    seed_everything(opt.seed, opt.deterministic)
    data = get_dataloaders(distributed.share(opt), device)
    if opt.evaluate:
        evaluate(opt, data, device)
        return
    arch = resolve(opt.model, data.image_size, '--model')
    net = model_dict[arch](num_classes=data.num_classes).to(device, memory_format=memory_format(opt))
    distributed.prepare(net, opt)
    prepare_step(net, distributed.share(opt), device)
    optimizer = sgd(net.parameters(), opt.learning_rate, opt)

    params = sum(p.numel() for p in net.parameters()) / 1e6
    name = f'{opt.model}_{opt.dataset}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{opt.trial}'
    name += f'_dali:{opt.dali}' if opt.dali else ''
    facts = data_facts(data)
    log = RunLog(opt, 'models', 'tensorboard', name, {'Total params': params, **facts})
    best_file = f'{opt.model}_best.pth'
    precision = Precision(opt.amp, device)

    def state():
        return {'epoch': len(log.history), 'model': net.state_dict(), 'best_acc': log.best['test_acc'],
                'optimizer': optimizer.state_dict(), 'arch': arch, 'num_classes': data.num_classes}

    with Keeper(log, opt, net, data.train_loader, facts, precision) as keeper:
        print(f'{arch} on {opt.dataset}: {params:.3f} M parameters, {data.num_classes} classes, '
              f'{data.n_train} training images, seed {opt.seed}, {distributed.where(device)}')
        module = distributed.wrap(net, device)
        epochs = keeper.epochs('train', opt.epochs, optimizer)
        if keeper.finished:
            log.write(keeper.finished, best_file, state, opt.save_freq)
        for epoch in epochs:
            start = time.perf_counter()
            rate = adjust_learning_rate(epoch, optimizer, opt)
            averages = train_vanilla(epoch, data.train_loader, module, optimizer, opt, keeper, precision)
            test = validate(data.test_loader, net, keeper=keeper)
            log.epoch(epoch, rate, averages, test, time.perf_counter() - start)
            keeper.end_epoch()
            log.write(epoch, best_file, state, opt.save_freq)
        log.close(seconds_per_unit=1)


def main():
    launch(train, teacher_options())


if __name__ == '__main__':
    run_main(main)
