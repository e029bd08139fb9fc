"""Distil a trained teacher into a student with one of the methods of distiller_zoo."""
if __name__ == '__main__':
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # not where the shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C during the imports and while the data is read

from pathlib import Path

import helper  # noqa: F401, before torch: it sets how threads wait
from dataset import get_dataloaders
from dataset.batch_augment import BatchAugment, mixes
from dataset.teacher_cache import TeacherOutputLoader, cache_bytes, open_cache
from distiller_zoo import get_method, make_distiller
from helper import distributed
from helper.compile import speed_up
from helper.device import Precision, memory_format, seed_everything
from helper.errors import UserError, run_main
from helper.estimate import estimate
from helper.launch import launch
from helper.loops import train_epoch, validate
from helper.optim import adjust_learning_rate
from helper.records import show_evaluation, warn_of_one_class
from helper.resume import fingerprint
from helper.run import Run
from helper.run_folder import RunPaths
from models.find import build, check_name
from models.fold import fold_batchnorm
from models.load import load_net, warn_of_size
from options import open_teacher, student_options


def train(opt, device):
    """What every process does. opt has the batch of all processes, `local` that of this one."""
    checkpoint_t = open_teacher(opt)
    local = distributed.per_process_options(opt)
    method = get_method(opt.distill)
    seed_everything(opt.seed, opt.deterministic)
    method.check_batch_size(local.batch_size)
    data = get_dataloaders(local, device, method.drop_last or mixes(opt), method.views)
    teacher = load_net(opt.path_t, checkpoint_t, opt.model_t, data)
    if opt.evaluate:
        teacher.to(device, memory_format=memory_format(opt))
        show_evaluation(opt.model_t, validate(data.test_loader, teacher, source=f'--path-t {opt.path_t}'))
        return

    # Build
    arch = check_name(opt.model_s, data.image_size, '--model_s')
    student = build(arch, data.num_classes, data.image_size, '--model_s', opt.drop_path)
    facts = {**fingerprint(data, teacher=teacher, student=student), 'teacher (checksum)': teacher.checksum}
    warn_of_size(arch, data.image_size, '--model_s')
    distiller = make_distiller(student, teacher, local, data)
    cache = None if opt.estimate else open_cache(opt, method.needs, teacher, data, device)
    if cache and cache.full and not method.reads_teacher and (opt.skip_validation or cache.accuracy is not None):
        distiller.teacher_follows = False       # nothing will be asked
    else:
        fold_batchnorm(teacher, data.image_size)
    distiller.to(device, memory_format=memory_format(opt))
    distributed.seed_this_process(opt.seed)
    if opt.sync_bn:
        distributed.synchronise_batchnorm(distiller)
    speed_up(distiller, local, device)
    if cache:
        data.train_loader = TeacherOutputLoader(data.train_loader, cache, distiller.ask_teacher)
    if mixes(opt) or opt.reprob:
        data.train_loader = BatchAugment(data.train_loader, local, data.num_classes, device)
    precision = Precision(opt.amp, device)
    init_rate = opt.init_learning_rate or method.init_rate(opt)

    def checkpoint():
        return {**distiller.checkpoint(), 'arch': arch, 'num_classes': data.num_classes, 'inputs': data.inputs,
                'classes': [*data.classes], 'split': opt.split}

    if opt.estimate:
        measured = None if opt.skip_validation else teacher
        size = cache_bytes(opt, method.needs, teacher, data)
        estimate(opt, distiller, data, precision, device, checkpoint, measured, init_rate, size)
        return

    paths = RunPaths.of_student(opt)
    if paths.folder.resolve() == Path(opt.path_t).resolve().parent:
        raise UserError(f'--path-t {opt.path_t}: this run would write its student there; give another --trial')

    # Train
    with Run(opt, paths, distiller, data.train_loader, facts, precision, checkpoint, data.split) as run:
        print(f'{method.title}: {opt.model_t} teaches {arch} on {opt.dataset}: {run.parameters:.3f} M parameters, '
              f'{data.num_classes} classes, {data.image_size} pixels, {data.sizes}, seed {opt.seed}, '
              f'{distributed.where(device)}')
        if not opt.skip_validation:
            accuracy = cache.accuracy if cache else None
            if accuracy is None:
                test = validate(data.test_loader, teacher, run, f'--path-t {opt.path_t}')
                accuracy = test['test_acc']
                warn_of_one_class(f'the teacher {opt.model_t}', test)
                if cache:
                    cache.save_accuracy(accuracy)
            print(f'teacher top-1: {accuracy:.2f}')
        if run.starts_anew:
            distiller.prepare(data)

        if distiller.initialising:
            module = distributed.wrap(distiller, device, unused=True)
            optimizer = distiller.make_optimizer(init_rate, opt)
            for epoch in run.epochs(optimizer, opt.init_epochs, 'init'):
                run.end_init_epoch(train_epoch(epoch, data.train_loader, module, optimizer, opt, run, precision))
            distiller.finish_init()

        module = distributed.wrap(distiller, device)
        optimizer = distiller.make_optimizer(opt.learning_rate, opt)
        for epoch in run.epochs(optimizer, opt.epochs):
            rate = adjust_learning_rate(epoch, optimizer, opt)
            distiller.begin_epoch(epoch, opt.epochs)
            averages = train_epoch(epoch, data.train_loader, module, optimizer, opt, run, precision)
            test = validate(data.test_loader, distiller.inference_net(), run)
            run.end_epoch(rate, averages, test, distiller.pictures())


def main():
    launch(train, student_options())


if __name__ == '__main__':
    run_main(main)
