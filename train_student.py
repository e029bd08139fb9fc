"""Distil a trained teacher into a student with one of the methods of distiller_zoo."""
if __name__ == '__main__':
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:       # the shell does not ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C ends the program during imports and reading of data

from pathlib import Path

import helper  # noqa: F401, before torch: it sets how threads wait
from analysis.estimate import estimate
from analysis.evaluate import evaluate
from dataset import get_dataloaders
from dataset.teacher_cache.multi_teacher import bytes_of_caches, open_caches, with_teacher_outputs
from dataset.teacher_head import head_passes
from distiller_zoo import get_method, make_distiller
from distiller_zoo.checks import check_classifier_learns, check_pairwise_batch
from helper import distributed
from helper.checkpoint import describe_net
from helper.cli import as_list, plus_list
from helper.compile import speed_up
from helper.device import Precision, memory_format, seed_everything
from helper.errors import UserError, run_main
from helper.launch import launch
from helper.loops import train_epoch, validate
from helper.optim import adjust_learning_rate
from helper.records import warn_of_one_class
from helper.resume import fingerprint
from helper.run import Run
from helper.run_folder import RunPaths
from models.ensemble import measured_nets, nets_of
from models.find import build, check_name, warn_of_size
from models.fold import fold_batchnorm
from models.grad_checkpointing import turn_on_grad_checkpointing
from models.quantisation import calibrate, calibration_images, quantise
from models.start import load_start
from models.sync_batchnorm import synchronise_batchnorm
from option_checkpoints import load_teacher, open_start, open_teacher, set_preprocessing
from options import student_options


def train(opt, device):
    """Train a student. Every process calls this; --batch_size is divided among them in `local`."""
    if opt.evaluate:
        evaluate(opt, device)
        return

    # Data and nets
    opt.model_t, checkpoint_t = open_teacher(opt)
    start = open_start(opt)
    inputs = set_preprocessing(opt, start, checkpoint_t)
    local = distributed.per_process_options(opt)
    method = get_method(opt.distill)
    spec = method.spec
    check_pairwise_batch(spec, local.batch_size)
    seed_everything(opt.seed, opt.deterministic)
    data = get_dataloaders(local, device, spec.drop_last, spec.views, inputs, spec.learns_classes)
    local.batch_size = data.train_loader.batch_size     # with the unlabelled images
    check_classifier_learns(opt, method, data)
    teacher = load_teacher(opt, checkpoint_t, data, device)
    arch = check_name(opt.model_s, data.image_size, '--model_s')
    student = build(arch, data.num_classes, data.image_size, '--model_s', opt.drop_path)
    warn_of_size(arch, data.image_size, '--model_s')
    loaded = load_start(student, start, data)
    if opt.qat:
        quantise(student, data.image_size, f'--model_s {arch}')
        if start.checksum is None:      # else --resume loads the ranges
            calibrate(student.to(device), calibration_images(data))
    properties = {**fingerprint(data, teacher=teacher, student=student), 'teacher (checksum)': teacher.checksum,
                  **loaded}

    # The distiller owns both nets
    distiller = make_distiller(student, teacher, local, data)
    cache = None if opt.estimate else open_caches(opt, spec.needs, teacher, data, device)
    validates = teacher.has_classifier and not opt.skip_validation
    needs_validation = validates and \
        not (cache and all(accuracy.value is not None for accuracy in cache.accuracies))
    if cache and cache.full and not needs_validation and not spec.reads_teacher:
        distiller.moves_teacher = False     # the teacher is not used: it stays in main memory
    else:
        for net in nets_of(teacher):
            fold_batchnorm(net, data.image_size)        # the same outputs, faster
    distiller.to(device, memory_format=memory_format(opt))
    distributed.seed_this_process(opt.seed)
    if opt.sync_bn:
        synchronise_batchnorm(distiller)
    if opt.grad_checkpointing:
        turn_on_grad_checkpointing(student, data.image_size, f'--model_s {arch}')
    speed_up(distiller, local, device)      # replaces forward and teacher_outputs, so it precedes the cache
    train_loader = data.train_loader
    if cache:
        train_loader = with_teacher_outputs(train_loader, cache, distiller.teacher_outputs)
    precision = Precision(opt.amp, device)
    init_rate = (opt.init_learning_rate or method.init_rate(opt)) if spec.first_stage else None

    def checkpoint():
        return {**describe_net(arch, data, opt), **distiller.checkpoint()}

    if opt.estimate:
        passes = [(net, data.selection_loader) for *_, net in measured_nets(opt, teacher) if validates]
        estimate(opt, distiller, data, precision, device, checkpoint, init_rate=init_rate,
                 first_passes=[*passes, *head_passes(opt, teacher, data)],
                 cache_bytes=bytes_of_caches(opt, spec.needs, teacher, data))
        return

    paths = RunPaths.of_student(opt)
    for path in as_list(opt.path_t):
        if paths.folder.resolve() == Path(path).resolve().parent:
            raise UserError(f'--path-t {path}: this run would write its student there; give another --trial')

    # Train
    with Run(opt, paths, distiller, train_loader, properties, precision, checkpoint, data) as run:
        print(f'{spec.title}: {plus_list(opt.model_t)} teaches {arch} on {opt.dataset}: {run.parameters:.3f} M '
              f'parameters, {data.class_count}{data.image_size} pixels, {data.sizes}, seed {opt.seed}, '
              f'{distributed.where(device)}; {data.description}')
        print(data.selection_note)
        if validates:
            print(f'teacher top-1{" on the validation set" if data.val_loader else ""}: '
                  f'{teacher_accuracy(opt, teacher, data, cache, run)}')
        if run.resumed is None:
            distiller.prepare(data)

        if distiller.in_first_stage:
            module = distributed.wrap(distiller, device, find_unused_parameters=True)
            optimizer = distiller.make_optimizer(init_rate, opt)
            for epoch in run.epochs(optimizer, opt.init_epochs, 'init'):
                run.end_init_epoch(train_epoch(epoch, train_loader, module, optimizer, opt, run, precision))
            distiller.end_first_stage()

        module = distributed.wrap(distiller, device)
        optimizer = distiller.make_optimizer(opt.learning_rate, opt)
        for epoch in run.epochs(optimizer, opt.epochs):
            rate = adjust_learning_rate(epoch, optimizer, opt)
            distiller.begin_epoch(epoch, opt.epochs)
            module = distributed.rewrap(module, device)
            averages = train_epoch(epoch, train_loader, module, optimizer, opt, run, precision)
            test = distiller.validate(data.selection_loader, run, data.selection_split)
            distiller.end_epoch()
            run.end_epoch(rate, {**averages, **distiller.measured_weights()}, test, distiller.pictures())
        run.measure_test_set(data.test_loader)


def teacher_accuracy(opt, teacher, data, cache, run) -> str:
    """Return the teacher's accuracy in percent, from the cache or measured on the validation set, else the test set.

    With several teachers: 'NAME ACCURACY' of each and of their ensemble.
    """
    nets, texts = measured_nets(opt, teacher), []
    for (name, source, net), stored in zip(nets, cache.accuracies if cache else [None] * len(nets), strict=True):
        accuracy = stored.value if stored else None
        if accuracy is None:
            test = validate(data.selection_loader, net, run, source, data.selection_split)
            warn_of_one_class(f'the teacher {name}', test)
            accuracy = test[f'{data.selection_split}_acc']
            if stored:
                stored.save(accuracy)
        texts.append(f'{name} {accuracy:.2f}' if len(nets) > 1 else f'{accuracy:.2f}')
    return ', '.join(texts)


def main():
    launch(train, student_options())


if __name__ == '__main__':
    run_main(main)
