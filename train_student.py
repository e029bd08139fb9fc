"""Distil a trained teacher into a student with one of the methods of distiller_zoo."""
import time
from pathlib import Path

from torch.optim import SGD

from dataset import get_dataloaders
from distiller_zoo import get_method
from helper.checkpoint import load_checkpoint, load_net, teacher_name
from helper.device import memory_format, seed_everything, select_device
from helper.errors import UserError, run_main
from helper.loops import adjust_learning_rate, train_distill, validate
from helper.options import student_options
from helper.run_log import RunLog, show_evaluation
from models import model_dict, resolve


def sgd(distiller, learning_rate, opt):
    """The optimiser of the student and the method's trainable part."""
    return SGD(distiller.parameters(), lr=learning_rate, momentum=opt.momentum, weight_decay=opt.weight_decay)


def main():
    opt = student_options()
    method = get_method(opt.distill)
    checkpoint = load_checkpoint(opt.path_t, '--path-t')
    opt.model_t = teacher_name(opt.path_t, checkpoint)
    device = select_device(opt.gpu_id)
    seed_everything(opt.seed, opt.deterministic)
    data = get_dataloaders(opt, device, smallest_batch=method.smallest_batch(opt.batch_size))
    teacher = load_net(opt.path_t, checkpoint, opt.model_t, data)
    if opt.evaluate:
        show_evaluation(opt.model_t, validate(data.test_loader, teacher.to(device, memory_format=memory_format(opt))))
        return
    arch = resolve(opt.model_s, data.image_size, '--model_s')
    student = model_dict[arch](num_classes=data.num_classes)
    distiller = method(student, teacher, opt, data).to(device, memory_format=memory_format(opt))

    params = sum(p.numel() for p in student.parameters()) / 1e6
    print(f'{method.title}: {opt.model_t} teaches {arch} on {opt.dataset}: {params:.3f} M parameters, '
          f'{data.num_classes} classes, {data.n_train} training images, seed {opt.seed}, {device}')
    name = (f'S:{opt.model_s}_T:{opt.model_t}_{opt.dataset}_{opt.distill}'
            f'_r:{opt.gamma}_a:{opt.alpha}_b:{opt.beta}_{opt.trial}' + (f'_dali:{opt.dali}' if opt.dali else ''))
    log = RunLog(opt.save_dir, 'student_model', 'student_tensorboards', name, opt, {'Total params': params})
    if (log.folder / f'{opt.model_s}_best.pth').resolve() == Path(opt.path_t).resolve():
        raise UserError(f'--path-t {opt.path_t}: this run would write its student there; give another --trial')
    if not opt.skip_validation:
        print(f'teacher top-1: {validate(data.test_loader, teacher)["test_acc"]:.2f}')

    if method.init_stage:
        optimizer = sgd(distiller, method.init_learning_rate or opt.learning_rate, opt)
        for epoch in range(1, opt.init_epochs + 1):
            log.init_epoch(epoch, train_distill(epoch, data.train_loader, distiller, optimizer, opt))
        distiller.finish_init()

    optimizer = sgd(distiller, opt.learning_rate, opt)
    for epoch in range(1, opt.epochs + 1):
        start = time.perf_counter()
        rate = adjust_learning_rate(epoch, optimizer, opt)
        train = train_distill(epoch, data.train_loader, distiller, optimizer, opt)
        test = validate(data.test_loader, distiller, distiller.predict)
        is_best = log.epoch(epoch, rate, train, test, time.perf_counter() - start, distiller.pictures())
        if is_best:
            log.keep_best(f'{opt.model_s}_best.pth', {
                'epoch': epoch, 'model': student.state_dict(), 'best_acc': test['test_acc'], **distiller.checkpoint(),
                'arch': arch, 'num_classes': data.num_classes})
    log.close(seconds_per_unit=3600)


if __name__ == '__main__':
    run_main(main)
