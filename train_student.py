"""Distil a trained teacher into a student with one of the methods of distiller_zoo."""
if __name__ == '__main__':
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # not where the shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C during the imports and while the data is read

import time
from pathlib import Path

from dataset import get_dataloaders
from distiller_zoo import get_method
from helper import distributed
from helper.checkpoint import load_checkpoint, load_net, teacher_name
from helper.device import memory_format, seed_everything
from helper.errors import UserError, run_main
from helper.fold import fold_batchnorm
from helper.launch import launch
from helper.loops import adjust_learning_rate, train_distill, validate
from helper.options import student_options
from helper.precision import Precision
from helper.resume import Keeper, data_facts, weights_checksum
from helper.run_log import RunLog, show_evaluation
from helper.speed import prepare_step, sgd
from models import model_dict, resolve


def train(opt, device):
    """What every process does; distributed.share(opt) is its part of the batch."""
    share = distributed.share(opt)
    method = get_method(opt.distill)
    checkpoint = load_checkpoint(opt.path_t, '--path-t')
    opt.model_t = share.model_t = teacher_name(opt.path_t, checkpoint)
    seed_everything(opt.seed, opt.deterministic)
    method.check_batch_size(share.batch_size)
    data = get_dataloaders(share, device, method.drop_last)
    teacher = load_net(opt.path_t, checkpoint, opt.model_t, data)
    facts = {**data_facts(data), 'teacher (checksum)': weights_checksum(teacher)}
    if opt.evaluate:
        show_evaluation(opt.model_t, validate(data.test_loader, teacher.to(device, memory_format=memory_format(opt))))
        return
    fold_batchnorm(teacher, data.image_size)
    arch = resolve(opt.model_s, data.image_size, '--model_s')
    student = model_dict[arch](num_classes=data.num_classes)
    distiller = method(student, teacher, share, data).to(device, memory_format=memory_format(opt))
    distributed.prepare(distiller, opt)
    prepare_step(distiller, share, device)

    params = sum(p.numel() for p in student.parameters()) / 1e6
    name = (f'S:{opt.model_s}_T:{opt.model_t}_{opt.dataset}_{opt.distill}'
            f'_r:{opt.gamma}_a:{opt.alpha}_b:{opt.beta}_{opt.trial}' + (f'_dali:{opt.dali}' if opt.dali else ''))
    log = RunLog(opt, 'student_model', 'student_tensorboards', name, {'Total params': params, **facts})
    best_file = f'{opt.model_s}_best.pth'
    if (log.folder / best_file).resolve() == Path(opt.path_t).resolve():
        raise UserError(f'--path-t {opt.path_t}: this run would write its student there; give another --trial')
    precision = Precision(opt.amp, device)

    def state():
        return {'epoch': log.best['epoch'], 'model': student.state_dict(), 'best_acc': log.best['test_acc'],
                **distiller.checkpoint(), 'arch': arch, 'num_classes': data.num_classes}

    with Keeper(log, opt, distiller, data.train_loader, facts, precision) as keeper:
        print(f'{method.title}: {opt.model_t} teaches {arch} on {opt.dataset}: {params:.3f} M parameters, '
              f'{data.num_classes} classes, {data.n_train} training images, seed {opt.seed}, '
              f'{distributed.where(device)}')
        if keeper.finished:
            log.write(keeper.finished, best_file, state)
        if not opt.skip_validation:
            print(f'teacher top-1: {validate(data.test_loader, teacher, keeper=keeper)["test_acc"]:.2f}')

        if distiller.initialising:
            module = distributed.wrap(distiller, device, unused=True)
            rate = opt.init_learning_rate or method.init_learning_rate or opt.learning_rate
            optimizer = sgd(distiller.parameters(), rate, opt)
            for epoch in keeper.epochs('init', opt.init_epochs, optimizer):
                averages = train_distill(epoch, data.train_loader, module, optimizer, opt, keeper, precision)
                log.init_epoch(epoch, averages)
                keeper.end_epoch()
            distiller.finish_init()

        module = distributed.wrap(distiller, device)
        optimizer = sgd(distiller.parameters(), opt.learning_rate, opt)
        for epoch in keeper.epochs('train', opt.epochs, optimizer):
            start = time.perf_counter()
            rate = adjust_learning_rate(epoch, optimizer, opt)
            averages = train_distill(epoch, data.train_loader, module, optimizer, opt, keeper, precision)
            test = validate(data.test_loader, distiller, distiller.predict, keeper)
            log.epoch(epoch, rate, averages, test, time.perf_counter() - start, distiller.pictures())
            keeper.end_epoch()
            log.write(epoch, best_file, state)
        log.close(seconds_per_unit=3600)


def main():
    launch(train, student_options())


if __name__ == '__main__':
    run_main(main)
