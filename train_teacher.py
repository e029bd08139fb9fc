"""Train a network alone with cross-entropy: a teacher, or a student to compare with."""
import time

from torch.optim import SGD

from dataset import get_dataloaders
from helper.checkpoint import load_checkpoint, load_net, save_checkpoint, teacher_name
from helper.device import memory_format, seed_everything, select_device
from helper.errors import run_main
from helper.loops import adjust_learning_rate, train_vanilla, validate
from helper.options import teacher_options
from helper.run_log import RunLog, show_evaluation
from models import model_dict, resolve


def evaluate(opt, data, device):
    """Measure the checkpoint of --evaluate."""
    checkpoint = load_checkpoint(opt.evaluate, '--evaluate')
    name = teacher_name(opt.evaluate, checkpoint, '--evaluate')
    net = load_net(opt.evaluate, checkpoint, name, data, '--evaluate').to(device, memory_format=memory_format(opt))
    show_evaluation(name, validate(data.test_loader, net))


def main():
    opt = teacher_options()
    device = select_device(opt.gpu_id)
    seed_everything(opt.seed, opt.deterministic)
    data = get_dataloaders(opt, device)
    if opt.evaluate:
        evaluate(opt, data, device)
        return
    arch = resolve(opt.model, data.image_size, '--model')
    net = model_dict[arch](num_classes=data.num_classes).to(device, memory_format=memory_format(opt))
    optimizer = SGD(net.parameters(), lr=opt.learning_rate, momentum=opt.momentum, weight_decay=opt.weight_decay)

    params = sum(p.numel() for p in net.parameters()) / 1e6
    print(f'{arch} on {opt.dataset}: {params:.3f} M parameters, {data.num_classes} classes, '
          f'{data.n_train} training images, seed {opt.seed}, {device}')
    name = f'{opt.model}_{opt.dataset}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{opt.trial}'
    name += f'_dali:{opt.dali}' if opt.dali else ''
    log = RunLog(opt.save_dir, 'models', 'tensorboard', name, opt, {'Total params': params})

    for epoch in range(1, opt.epochs + 1):
        start = time.perf_counter()
        rate = adjust_learning_rate(epoch, optimizer, opt)
        train = train_vanilla(epoch, data.train_loader, net, optimizer, opt)
        test = validate(data.test_loader, net)
        is_best = log.epoch(epoch, rate, train, test, time.perf_counter() - start)
        state = {'epoch': epoch, 'model': net.state_dict(), 'best_acc': log.best['test_acc'],
                 'optimizer': optimizer.state_dict(), 'arch': arch, 'num_classes': data.num_classes}
        if is_best:
            log.keep_best(f'{opt.model}_best.pth', state)
        if epoch % opt.save_freq == 0:
            save_checkpoint(log.folder / f'ckpt_epoch_{epoch}.pth', state)
    log.close(seconds_per_unit=1)


if __name__ == '__main__':
    run_main(main)
