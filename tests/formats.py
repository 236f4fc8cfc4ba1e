"""The same images in every form that a source reads."""

import csv
import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from pujax.data.embedded import load_embedded

CLASSES = ("digits", "wear")


def real_images(count=200):
    """Some of the embedded pool's images, one class after the other.

    Returns:
        (names "wear/0012.jpg", files alternately JPEG and PNG, labels, decoded pixels uint8 [N, 32, 32, 3]).
    """
    pool = load_embedded("pool")
    rows = np.concatenate([np.flatnonzero(pool["truth"] == label)[: count // 2] for label in (False, True)])
    labels = pool["truth"][rows].astype(int)
    names, files, pixels = [], [], []
    for i, image in enumerate(np.pad(pool["images"][rows], ((0, 0), (2, 2), (2, 2)))):
        buffer, kind = io.BytesIO(), "JPEG" if i % 2 else "PNG"
        Image.fromarray(image).save(buffer, kind)
        names.append(f"{CLASSES[labels[i]]}/{i:04d}.{'jpg' if i % 2 else 'png'}")
        files.append(buffer.getvalue())
        pixels.append(np.asarray(Image.open(buffer).convert("RGB")))
    return names, files, labels, np.stack(pixels)


def write_folder(root, names, files):
    for name, content in zip(names, files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_list(path, names, labels, column="path"):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([(column, "label"), *((name, CLASSES[label]) for name, label in zip(names, labels))])


def write_tar(path, members, form=tarfile.GNU_FORMAT):
    """Write (name, content) pairs."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_700_000_000
            tar.addfile(member, io.BytesIO(content))


def samples(files, labels, first=0, label="cls"):
    """The members of a WebDataset shard."""
    for i, (content, number) in enumerate(zip(files, labels), start=first):
        if label == "cls":
            yield f"{i:06d}.cls", str(number).encode()
        suffix = "png" if content.startswith(b"\x89PNG") else "jpg"
        yield f"{i:06d}.{suffix}", content
        if label == "json":
            yield f"{i:06d}.json", json.dumps({"label": CLASSES[number], "url": "https://..."}).encode()


def features():
    return {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        "other": {"dtype": "int64", "_type": "Value"},
    }


def rows_table(names, files, labels):
    """The table that Hugging Face's `datasets` makes of images."""
    structs = [{"bytes": content, "path": name} for name, content in zip(names, files)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"other": pa.array(range(len(files))), "image": pa.array(structs, kind), "label": pa.array(labels)}
    note = json.dumps({"info": {"features": features()}})
    return pa.table(columns).replace_schema_metadata({"huggingface": note})


def write_parquet(path, names, files, labels, row_group_size=30):
    pq.write_table(rows_table(names, files, labels), path, row_group_size=row_group_size)


def write_saved(folder, names, files, labels, shards=2):
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    bounds = np.linspace(0, len(files), shards + 1).astype(int)
    table = rows_table(names, files, labels)
    filenames = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for name, start, stop in zip(filenames, bounds, bounds[1:]):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table[start:stop], max_chunksize=17)
    state = {"_data_files": [{"filename": name} for name in filenames], "_fingerprint": "0123", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features()}))


def example(content, label, *, packed=True):
    """A serialised tf.train.Example."""

    def length(size):
        out = b""
        while size > 127:
            out, size = out + bytes([size & 127 | 128]), size >> 7
        return out + bytes([size])

    def field(number, value):
        return bytes([number << 3 | 2]) + length(len(value)) + value

    number = bytes([1 << 3 | 2, 1, label]) if packed else bytes([1 << 3, label])
    entries = {
        b"image/encoded": field(1, field(1, content)),
        b"image/class/label": field(3, number),
        b"image/height": field(3, b"\x0a\x02\xac\x02"),
        b"image/mean": field(2, field(1, b"\0\0\x80\x3f")),
    }
    features = b"".join(field(1, field(1, name) + field(2, value)) for name, value in entries.items())
    return field(1, features)


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def planes(pixels):
    """uint8 [N, 3072], as CIFAR has images."""
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)


def write_cifar(folder, pixels, labels, protocol=2):
    folder.mkdir()
    half = len(labels) // 2
    for number, part in ((1, slice(half)), (2, slice(half, None))):
        batch = {b"data": planes(pixels)[part], b"labels": labels[part].tolist(), b"batch_label": b"training batch"}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol))
    names = {b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol))


def write_idx(path, array, pack=gzip.compress):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.write_bytes(pack(header + array.tobytes()))


def write_all(root, count=200):
    """Write every form; return {text of a source: (first key, last key, class names)}, the labels and the pixels."""
    names, files, labels, pixels = real_images(count)
    half, last = count // 2, count - 1
    write_folder(root / "heap", names, files)
    write_list(root / "heap" / "list.csv", names, labels)
    pq.write_table(pa.table({"filename": [str(root / "heap" / name) for name in names], "label": labels}),
                   root / "list.parquet")  # fmt: skip
    (root / "shards").mkdir()
    for form, label in ((tarfile.GNU_FORMAT, "cls"), (tarfile.PAX_FORMAT, "json")):
        for number, part in enumerate((slice(half), slice(half, None))):
            members = samples(files[part], labels[part], half * number, label)
            write_tar(root / "shards" / f"{label}-{number:03d}.tar", members, form)
    (root / "rows").mkdir()
    for number, part in enumerate((slice(half), slice(half, None))):
        write_parquet(root / "rows" / f"{number}.parquet", names[part], files[part], labels[part])
    downloaded = {"key": names, "jpg": files, "cls": labels, "caption": names}
    pq.write_table(pa.table(downloaded), root / "img2dataset.parquet", row_group_size=64)
    write_saved(root / "saved", names, files, labels)
    write_saved(root / "dict" / "validation", names, files, labels)
    (root / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    write_records(root / "examples.array_record-00000-of-00001", map(example, files, labels.tolist()))
    write_cifar(root / "cifar", pixels, labels)
    np.savez(root / "all.npz", images=pixels, labels=labels, class_names=CLASSES)
    for number, part in enumerate((slice(half), slice(half, None)), start=1):
        np.savez(root / f"train_data_batch_{number}.npz", data=planes(pixels)[part], labels=labels[part] + 1)
    (root / "idx").mkdir()
    write_idx(root / "idx" / "t10k-images-idx3-ubyte.gz", pixels[..., 0])
    write_idx(root / "idx" / "t10k-labels-idx1-ubyte", labels.astype(np.uint8), bytes)
    folder_keys = (names[0], names[-1])
    return {
        f"{root}/heap": (*folder_keys, CLASSES),
        f"{root}/heap/list.csv": (*folder_keys, CLASSES),
        f"list:{root}/list.parquet": (f"{root}/heap/{names[0]}", f"{root}/heap/{names[-1]}", None),
        f"{root}/shards/cls-{{000..001}}.tar": ("cls-000.tar/000000.png", f"cls-001.tar/{last:06d}.jpg", None),
        f"{root}/shards/json-*.tar": ("json-000.tar/000000.png", f"json-001.tar/{last:06d}.jpg", CLASSES),
        f"{root}/rows": ("0.parquet/0", f"1.parquet/{half - 1}", CLASSES),
        f"{root}/img2dataset.parquet": ("img2dataset.parquet/0", f"img2dataset.parquet/{last}", None),
        f"{root}/saved": ("data-00000-of-00002.arrow/0", f"data-00001-of-00002.arrow/{half - 1}", CLASSES),
        f"{root}/dict#validation": ("data-00000-of-00002.arrow/0", f"data-00001-of-00002.arrow/{half - 1}", CLASSES),
        f"{root}/examples.array_record-00000-of-00001": (
            "examples.array_record-00000-of-00001/0", f"examples.array_record-00000-of-00001/{last}", None,
        ),
        f"{root}/cifar": ("0", str(last), CLASSES),
        f"{root}/all.npz": ("0", str(last), CLASSES),
        f"{root}/train_data_batch_{{1,2}}.npz": ("0", str(last), None),
        f"{root}/idx#test": ("0", str(last), None),
    }, labels, pixels  # fmt: skip
