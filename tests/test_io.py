"""The door: what other programs write is read as they mean it, what we write they read, and no file is half written."""

import errno
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import boost_histogram as bh
import hist
import numpy as np
import pytest
import torch
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from uhi.numpy_plottable import NumPyPlottableHistogram

from specfit.errors import InputError
from specfit.io import like, parse_edges, read, to_hist, write
from specfit.io.files import finite_or_none, write_json
from specfit.spectrum import Spectrum

COUNTS = np.array([40.0, 30.5, 0.0, 12.0])
EDGES = np.array([0.0, 1.0, 2.5, 5.0, 10.0])
VARIANCES = np.array([80.0, 61.0, 0.0, 3.0])
# One ending for each format, as a user writes it.
ONE_SPECTRUM = ["h.npz", "h.csv", "h.root:h", "h.root:deep/folder/h", "H.ROOT:h"]
EVERY_ENDING = ["h.npy", *ONE_SPECTRUM]


@pytest.fixture
def weighted():
    return Spectrum(COUNTS, EDGES, variances=VARIANCES)


@pytest.fixture
def root_file(tmp_path):
    """A file with histograms in folders, a tree, a text, two cycles, a 2-d histogram, a profile and categories."""
    path = tmp_path / "many.root"
    one = hist.Hist.new.Var(EDGES, name="mass", label="m [GeV]").Weight()
    one.fill([0.5, 1.5, 1.6, 7.0, -3.0, 99.0], weight=[2, 1, 3, 0.5, 7, 8])
    with uproot.recreate(path) as file:
        file["weighted"] = one
        file["region/plain"] = np.histogram([0.1, 0.2, 0.9], bins=4, range=(0, 1))
        file["plane"] = hist.Hist.new.Reg(3, 0, 1).Reg(2, 0, 1).Double()
        file["profile"] = hist.Hist.new.Reg(3, 0, 1).Mean()
        file["labels"] = hist.Hist.new.StrCat(["ee", "mumu"]).Double()
        file["note"] = "kept"
        file.mktree("region/tree", {"x": "f8"})
        file["region/tree"].extend({"x": np.arange(10_000.0)})
        file["plain"] = np.histogram([0.1], bins=4, range=(0, 1))
        file["plain"] = np.histogram([0.1, 0.2], bins=4, range=(0, 1))
    return path


def same(a, b):
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.edges, b.edges)
    assert (a.variances is None) == (b.variances is None)
    assert a.variances is None or torch.equal(a.variances, b.variances)


# Reading what others wrote


def test_every_published_spectrum_is_read_as_numpy_reads_it(spectra_folder):
    files = sorted(spectra_folder.glob("*.csv"))
    assert len(files) >= 32
    for file in files:
        table = np.genfromtxt(file, delimiter=",", names=True)
        spectrum = read(file)
        np.testing.assert_array_equal(spectrum.counts, table["content"], err_msg=file.name)
        np.testing.assert_array_equal(spectrum.edges[:-1], table["low_edge"], err_msg=file.name)
        assert spectrum.edges[-1] == table["high_edge"][-1], file.name
        # Rounded edges: the upper ones differ by no more than a thousandth of a bin.
        off = abs(spectrum.edges[1:].numpy() - table["high_edge"]) / spectrum.widths.numpy()
        assert off.max() < 1e-3, file.name
        assert spectrum.variances is None, file.name


def test_npy_takes_the_edges_that_are_given(tmp_path):
    path = tmp_path / "h.npy"
    np.save(path, np.asfortranarray([[1, 2, 3], [4, 5, 6]], dtype=">i4"))
    batch = read(path, edges="0:3:3", variances=[[2, 2, 2], [3, 3, 3]])
    assert batch.counts.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch.edges.tolist() == [0, 1, 2, 3]
    assert batch.variances.tolist() == [[2, 2, 2], [3, 3, 3]]


def test_npz_takes_its_own_edges_or_those_that_are_given(tmp_path):
    np.savez_compressed(tmp_path / "full.npz", counts=COUNTS, edges=EDGES, variances=VARIANCES, other=["x"])
    same(read(str(tmp_path / "full.npz")), Spectrum(COUNTS, EDGES, variances=VARIANCES))
    np.savez(tmp_path / "bare.npz", counts=COUNTS, bins=EDGES)
    same(read(tmp_path / "bare.npz", EDGES), Spectrum(COUNTS, EDGES))
    with pytest.raises(InputError, match=r"no array named edges \(it holds counts, bins\).*--edges FILE"):
        read(tmp_path / "bare.npz")


def test_root_histogram_is_read_as_uproot_reads_it(root_file):
    with uproot.open(root_file) as file:
        expected, plain = file["weighted"], file["region/plain"]
    spectrum = read(f"{root_file}:weighted")
    np.testing.assert_array_equal(spectrum.counts, expected.values())
    np.testing.assert_array_equal(spectrum.edges, expected.axis().edges())
    np.testing.assert_array_equal(spectrum.variances, expected.variances())
    assert spectrum.total == 6.5  # flow bins left out
    assert read(f"{root_file}:region/plain").counts.tolist() == plain.values().tolist()
    assert read(f"{root_file}:region/plain").variances is None
    assert read(f"{root_file}:plain").total == 2  # the newest cycle
    assert read(f"{root_file}:/plain;1").total == 1
    same(read(expected), spectrum)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hist.Hist(hist.axis.Variable(EDGES, name="m"), storage=hist.storage.Weight()),
        lambda: hist.Hist(hist.axis.Variable(EDGES, flow=False), storage=hist.storage.Weight()),
        lambda: bh.Histogram(bh.axis.Variable(EDGES), storage=bh.storage.Weight()),
        lambda: bh.Histogram(bh.axis.Regular(4, 1, 10, transform=bh.axis.transform.log), storage=bh.storage.Weight()),
        lambda: bh.Histogram(bh.axis.Integer(3, 9), storage=bh.storage.Weight()),
    ],
)
def test_weighted_histogram_objects(make, tolerance):
    histogram = make()
    histogram.fill([3, 3, 4, 8, 100, -1], weight=[2.0, 3.0, 0.5, 1.0, 9.0, 9.0])
    spectrum = read(histogram)
    np.testing.assert_array_equal(spectrum.counts, histogram.values())
    np.testing.assert_array_equal(spectrum.variances, histogram.variances())
    np.testing.assert_allclose(spectrum.edges, histogram.axes[0].edges, **tolerance["rounding"])


@pytest.mark.parametrize("storage", [bh.storage.Double(), bh.storage.Int64(), bh.storage.Weight()])
def test_unweighted_histogram_objects_are_poisson_counts(storage):
    histogram = hist.Hist(hist.axis.Regular(3, 0, 3), storage=storage)
    histogram.fill([0.5, 0.6, 2.5])
    same(read(histogram), Spectrum([2, 0, 1], [0, 1, 2, 3]))


def test_weights_in_plain_storage_are_mentioned(caplog):
    histogram = hist.Hist.new.Reg(3, 0, 3).Double()
    histogram.fill([0.5], weight=3.0)
    assert read(histogram).variances is None
    assert "does not know its variances" in caplog.text


def test_any_object_with_axes_and_values_is_read():
    same(
        read(NumPyPlottableHistogram(COUNTS, EDGES, variances=VARIANCES)), Spectrum(COUNTS, EDGES, variances=VARIANCES)
    )

    class Least:
        axes = ([(0.0, 1.0), (1.0, 3.0)],)

        def values(self):
            return [5, 6]

    same(read(Least()), Spectrum([5, 6], [0, 1, 3]))


def test_arrays_and_spectra():
    counts = [40, 30, 0, 12]
    expected = Spectrum(counts, EDGES)
    for source in (counts, tuple(counts), np.array(counts), torch.tensor(counts)):
        same(read(source, EDGES), expected)
    same(read((counts, EDGES)), expected)
    same(read(np.histogram([0.5] * 40 + [2] * 30 + [6] * 12, EDGES)), expected)
    same(read((COUNTS, EDGES, VARIANCES)), Spectrum(COUNTS, EDGES, variances=VARIANCES))
    assert read(expected) is expected
    assert read(expected, EDGES + 1e-9) is expected
    same(read(expected, variances=VARIANCES), Spectrum(counts, EDGES, variances=VARIANCES))


# Text


@pytest.mark.parametrize(
    "text",
    [
        "low_edge,high_edge,content\n0,1,4\n1,3,2.5\n",
        "\ufefflow_edge,high_edge,content\r\n0,1,4\r\n1,3,2.5\r\n",
        "# made by hand\n\n0,1,4\n1,3,2.5",
        ' Content , "HIGH_EDGE", low_edge, fit\n4,1,0,3.9\n,,,\n2.5,3,1,\n',
        "low_edge,high_edge,content\n0,1.0009,4\n1,3,2.5\n",
        "low_edge,high_edge,content\n0,0.9991,4\n1,3,2.5\n",
    ],
    ids=["plain", "windows", "no header", "other order", "rounded up", "rounded down"],
)
def test_csv_in_every_form(tmp_path, text):
    path = tmp_path / "h.csv"
    path.write_text(text, encoding="utf-8", newline="")
    same(read(path), Spectrum([4, 2.5], [0, 1, 3]))


@pytest.mark.parametrize(("column", "cells"), [("variance", "9,16"), ("uncertainty", "3,4"), ("error", "3,4")])
def test_csv_column_gives_variances(tmp_path, column, cells):
    first, second = cells.split(",")
    (tmp_path / "h.csv").write_text(f"low_edge,high_edge,content,{column}\n0,1,4,{first}\n1,3,2,{second}\n")
    assert read(tmp_path / "h.csv").variances.tolist() == [9, 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low_edge,high_edge,content\n0,1,4\n1.0021,3,2\n", "line 3: a gap before it: it starts at 1.0021"),
        ("low_edge,high_edge,content\n0,1,4\n0.9,3,2\n", "line 3: an overlap with the bin before it"),
        ("1,3,2\n0,1,4\n", "line 2: an overlap.*rising order"),
        ("0,1,4\n1,1,2\n", "line 2: the upper edge must lie above the lower one, 1 to 1 came"),
        ("0,1,4\nnan,3,2\n", "line 2: the upper edge must lie above"),
        ("0,1,4\n1,3,many\n", "line 2, content: a number is expected, 'many' came"),
        ("0,1,4\n1,3\n", "line 2, content: a number is expected, '' came"),
        (
            "low,high,n\n0,1,4\n1,3,2\n",
            r"no column named low_edge, high_edge, content \(the columns are low, high, n\)",
        ),
        ("low_edge;high_edge;content\n0;1;4\n", "separated by commas"),
        ("low_edge,high_edge,content,content\n0,1,4,5\n1,3,2,5\n", "2 columns are named content; rename"),
        ("0,1,4,5\n1,3,2,5\n", "line 1: 4 columns came without a header line"),
        ("low_edge,high_edge,content\n0,1,4\n1,3,2,5\n", "line 3: 4 cells came, 3 are expected"),
        ("low_edge,high_edge,content\n", "no line with numbers"),
        ("\n# nothing\n", "no line with numbers"),
        ("low_edge,high_edge,content,error\n0,1,4,1\n1,3,2,-1\n", "line 3, error: must not be negative"),
        ("0,1,4\n1,3,-2\n", "counts: -2 at bin 1"),
        ("0,1,4\n", r"edges: 1 bin\(s\) came"),
        ('0,1,"4\n' + "5" * 200_000, "not a text file of comma-separated columns"),
        ("0,1,4\n1,3,caf\xe9\n".encode("latin-1"), "not a text file"),
    ],
)
def test_csv_errors_name_the_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"bad.csv: .*{message}"):
        read(path)


# Edges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:300:60", np.linspace(0, 300, 61)),
        ("-5:5.5:3", np.linspace(-5, 5.5, 4)),
        ("1e2:1e4:7:log", np.geomspace(100, 10_000, 8)),
    ],
)
def test_edges_as_text(text, expected):
    np.testing.assert_array_equal(parse_edges(text), expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.txt", "0\n1\n2.5\n5\n10\n"),
        ("e.txt", "0 1  2.5\t5 10"),
        ("e.txt", "# m [GeV]\n0, 1, 2.5, 5, 10\n"),
        ("e.txt", "0 1\n1 2.5\n2.5 5\n5 10\n"),
        ("e.csv", "edge\n0\n1\n2.5\n5\n10\n"),
        ("e.csv", "0,1,2.5,5,10\n"),
        ("e.csv", "low_edge,high_edge\n0,1\n1,2.5\n2.5,5\n5,10\n"),
        ("e.csv", "low_edge,high_edge,content,fit\n0,1,3,3\n1,2.5,2,2\n2.5,5,1,1\n5,10,0,0\n"),
    ],
)
def test_edges_from_text_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(parse_edges(tmp_path / name), EDGES)


def test_edges_from_other_files_and_arrays(tmp_path):
    np.save(tmp_path / "e.npy", EDGES)
    np.savez(tmp_path / "e.npz", edges=EDGES)
    with uproot.recreate(tmp_path / "e.root") as file:
        file["d/h"] = (COUNTS, EDGES)
    for source in (tmp_path / "e.npy", str(tmp_path / "e.npz"), f"{tmp_path}/e.root:d/h", EDGES, EDGES.tolist()):
        edges = parse_edges(source)
        assert edges.dtype == torch.float64
        np.testing.assert_array_equal(edges, EDGES)
    same(read(COUNTS, tmp_path / "e.npy"), Spectrum(COUNTS, EDGES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:10:2.5", "n, the number of bins, must be a whole number from 2 to 1000000, '2.5' came"),
        ("0:10:many", "must be a whole number"),
        ("0:10:-3", "must be a whole number"),
        ("0:10:1", "from 2"),
        ("0:10:99999999999999", "to 1000000"),
        ("10:0:5", "hi must be larger than lo, 10 and 0 came"),
        ("0:0:5", "hi must be larger than lo"),
        ("0:inf:5", "hi must be larger than lo"),
        ("nan:1:5", "hi must be larger than lo"),
        ("0:10:5:log", "log needs lo above 0, 0 came"),
        ("1:10:5:ln", "expected lo:hi:n, lo:hi:n:log or a file"),
        ("a:b:5", "lo and hi must be numbers, 'a' and 'b' came"),
        ("0:10", "expected lo:hi:n"),
        ("edges.parquet", "or a file that ends in .npy, .npz, .csv, .txt, .root"),
        ("", "expected lo:hi:n"),
        ("1e-300:1e300:50:log", "edges: 1e-300 to 1e.300 with widths of .* is beyond double precision"),
    ],
)
def test_edges_errors_quote_what_came(text, message):
    with pytest.raises(InputError, match=f"edges '{text}': .*{message}"):
        parse_edges(text)


def test_edges_files_are_checked_like_spectra(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: there is no such file"):
        parse_edges("nowhere.txt")
    np.save(tmp_path / "e.npy", [3.0, 2.0, 1.0])
    with pytest.raises(InputError, match=r"e.npy': edges: must increase strictly"):
        parse_edges(tmp_path / "e.npy")
    np.savez(tmp_path / "e.npz", bins=EDGES)
    with pytest.raises(InputError, match=r"no array named edges \(the file holds bins\)"):
        parse_edges(tmp_path / "e.npz")
    with pytest.raises(InputError, match="one row of numbers"):
        parse_edges([[0, 1], [1, 2]])


def test_default_edges_are_used_only_where_there_are_none_and_they_fit(tmp_path):
    path, default = tmp_path / "h.npy", [0, 10, 20, 30, 40]
    np.save(path, COUNTS)
    assert read(path, default_edges=default).edges.tolist() == default
    assert read(path, EDGES, default_edges=default).edges.tolist() == EDGES.tolist()
    assert read((COUNTS, EDGES), default_edges=default).edges.tolist() == EDGES.tolist()
    message = r"h.npy: edges: a .npy file has no edges, and its 4 bins do not fit the default edges \(2 bins, 0 to 2\)"
    with pytest.raises(InputError, match=message):
        read(path, default_edges=[0, 1, 2])
    message = "h.npy: edges: a .npy file has no edges; 4 bins came without them: give them with --edges FILE.lo:hi:n"
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize("edges", [EDGES * 1.01, EDGES[:-1], "0:10:4"])
def test_edges_that_contradict_the_sources_own_are_refused(edges):
    for source in (Spectrum(COUNTS, EDGES), (COUNTS, EDGES), hist.Hist(hist.axis.Variable(EDGES), data=COUNTS)):
        with pytest.raises(InputError, match=r"edges: the source has its own \(4 bins, 0 to 10\) and others came"):
            read(source, edges)


def test_variances_that_contradict_the_sources_own_are_refused(weighted):
    with pytest.raises(InputError, match="variances: the source has its own"):
        read(weighted, variances=VARIANCES)


# What is refused


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".root:h"])
def test_files_that_cannot_be_read(tmp_path, ending):
    name = f"{tmp_path}/h{ending}"
    file = Path(name.removesuffix(":h"))
    with pytest.raises(FileNotFoundError, match=rf"h\{ending[:4]}.*there is no such file"):
        read(name)
    file.mkdir()
    with pytest.raises(IsADirectoryError, match=r"this is a folder"):
        read(name)
    file.rmdir()
    file.touch()
    with pytest.raises(InputError, match=r"the file is empty \(0 bytes\)"):
        read(name)


@pytest.mark.parametrize("was", EVERY_ENDING[:4])
@pytest.mark.parametrize("named", ["h.npy", "h.npz", "h.csv", "h.root:h"])
def test_foreign_files_under_a_wrong_ending(tmp_path, weighted, was, named):
    source, target = (tmp_path / name.partition(":")[0] for name in (was, named))
    if source == target:
        target = source.with_name("again" + source.name)
    write(weighted, tmp_path / was)
    source.rename(target)
    wrong = source.suffix != target.suffix
    given = f"{target}{named.partition('.root')[2]}"
    if not wrong:
        assert read(given, None if was != "h.npy" else EDGES).n_bins == 4
        return
    message = "this is not a" if source.suffix == ".csv" else f"this is a {source.suffix} file; rename it"
    with pytest.raises(InputError, match=message):
        read(given)


def test_pickled_data_are_never_loaded(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    np.save(tmp_path / "objects.npy", np.array([1, 2, Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", counts=np.array([1, Bomb()], dtype=object), edges=EDGES)
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("objects.npy", "objects.npz", "pickled.npy"):
        with pytest.raises(InputError, match=rf"{name}: .*refused because.*save plain numbers with"):
            read(tmp_path / name, EDGES)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a", "b"]), "real numbers are expected, an array of <U1 came"),
        (np.array([(1, 2.0)], dtype=[("n", "i4"), ("x", "f8")]), "real numbers are expected"),
        (np.array([1j, 2]), "real numbers are expected"),
        (np.ones((2, 2, 2)), r"\(2, 2, 2\) came"),
        (np.array(5.0), r"counts: shape \(n_bins,\) or \(n_spectra, n_bins\) is expected, \(\) came"),
        (np.zeros((0, 4)), "no spectrum came"),
        (np.array([1.0, np.nan, 2.0, 3.0]), "nan at bin 1"),
    ],
)
def test_arrays_that_are_no_counts(tmp_path, array, message):
    np.save(tmp_path / "h.npy", array)
    with pytest.raises(InputError, match=f"h.npy: .*{message}"):
        read(tmp_path / "h.npy", EDGES)


def test_npz_without_counts_lists_what_is_there(tmp_path):
    np.savez(tmp_path / "h.npz", COUNTS, EDGES)
    with pytest.raises(InputError, match=r"h.npz: no array named counts \(the file holds arr_0, arr_1\)"):
        read(tmp_path / "h.npz")


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("", "say which histogram: file.root:name; there are weighted, region/plain, labels, plain"),
        ("nothing", "nothing has that name in the file; there are weighted, region/plain, labels, plain"),
        ("region", "region is a folder, not a histogram; there are"),
        ("region/tree", "region/tree is a TTree, not a histogram"),
        ("note", "note is a TObjString, not a histogram"),
        ("plane", "a histogram with 2 axes came, one is expected"),
        ("profile", "a profile"),
        ("labels", "the axis has categories"),
    ],
)
def test_root_errors_say_what_is_there(root_file, inside, message):
    with pytest.raises(InputError, match=f"many.root.*{message}"):
        read(f"{root_file}:{inside}" if inside else root_file)


def test_root_error_lists_only_the_first_of_many(tmp_path):
    with uproot.recreate(tmp_path / "many.root") as file:
        for i in range(25):
            file[f"h{i}"] = (COUNTS, EDGES)
    with pytest.raises(InputError, match=r"there are h0, .*, h19 and 5 more$"):
        read(f"{tmp_path}/many.root:h")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "a path, a histogram, .* can be read, a NoneType came"),
        ({"counts": COUNTS}, "a dict came"),
        (5.0, "counts"),
        ([[1, 2], [3]], "not a rectangular array"),
        (hist.Hist.new.Reg(2, 0, 1).Reg(2, 0, 1).Double(), "2 axes came"),
        (hist.Hist.new.Reg(2, 0, 1).Mean(), "a profile"),
        (hist.Hist.new.StrCat(["a", "b"]).Double(), "categories"),
        (hist.Hist.new.IntCat([7, 3]).Double(), "bin 1: an overlap"),
        ("h.parquet", r"h.parquet: the ending '.parquet' is not known; .npy, .npz, .csv, .root can be read"),
        ("root://eos.cern.ch//store/h.root:h", "only local files can be read"),
    ],
)
def test_sources_that_hold_no_spectrum(source, message):
    with pytest.raises(InputError, match=message):
        read(source, [0, 1, 2])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), name=st.sampled_from(EVERY_ENDING[:4]))
def test_damaged_files_give_one_clear_error(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("damaged")
    given_name = write(Spectrum(COUNTS, EDGES, variances=VARIANCES), folder / name)
    file = folder / name.partition(":")[0]
    content = bytearray(file.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    message = ""
    try:
        read(given_name, EDGES)
    except InputError as error:
        message = str(error)
    # Without a message the damage left a valid spectrum; any other exception fails the test.
    assert not message or (message.startswith(str(given_name)) and "\n" not in message)


# Writing


NUMBERS = st.floats(0, 1e100, allow_subnormal=False)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    bins=st.lists(st.tuples(NUMBERS, NUMBERS, st.floats(1e-3, 1e6)), min_size=2, max_size=20),
    start=st.floats(-1e6, 1e6),
    has_variances=st.booleans(),
)
@pytest.mark.parametrize("name", ["h.npz", "h.csv", "h.root:d/h"])
def test_write_then_read_is_exact(tmp_path_factory, name, bins, start, has_variances):
    counts, variances, widths = (np.array(column) for column in zip(*bins, strict=True))
    edges = np.append(start, start + np.cumsum(widths))
    counts[0] += 1
    variances[0] = 2 * counts[0]
    spectrum = Spectrum(counts, edges, variances=variances if has_variances else None)
    path = write(spectrum, tmp_path_factory.mktemp("exact") / name)
    if name.startswith("h.root"):  # equal bins go through ROOT's lo and hi
        np.testing.assert_allclose(read(path).edges, edges, rtol=1e-13, atol=1e-9 * widths.min())
        spectrum = Spectrum(counts, read(path).edges, variances=spectrum.variances)
    same(read(path), spectrum)


def test_other_programs_read_what_is_written(tmp_path, weighted):
    np.testing.assert_array_equal(np.load(write(weighted, tmp_path / "h.npy")), COUNTS)
    with np.load(write(weighted, tmp_path / "h.npz")) as archive:
        assert {name: archive[name].tolist() for name in archive.files} == {
            "counts": COUNTS.tolist(),
            "edges": EDGES.tolist(),
            "variances": VARIANCES.tolist(),
        }
    table = np.genfromtxt(write(weighted, tmp_path / "h.csv"), delimiter=",", names=True)
    assert table.dtype.names == ("low_edge", "high_edge", "content", "variance")
    np.testing.assert_array_equal(table["content"], COUNTS)
    np.testing.assert_array_equal(table["high_edge"], EDGES[1:])
    write(weighted, tmp_path / "h.root:d/h")
    write(Spectrum(COUNTS, [0, 1, 2, 3, 4]), tmp_path / "h.root:regular")
    with uproot.open(tmp_path / "h.root") as file:
        written, regular = file["d/h"], file["regular"]
    assert (written.classname, written.weighted, regular.weighted) == ("TH1D", True, False)
    np.testing.assert_array_equal(written.values(flow=True), [0, *COUNTS, 0])
    np.testing.assert_array_equal(written.variances(), VARIANCES)
    np.testing.assert_array_equal(written.axis().edges(), EDGES)
    assert len(regular.axis().member("fXbins")) == 0  # equal bins stay equal bins in ROOT


@pytest.mark.parametrize("name", ["h.npy", "h.npz"])
def test_batches_go_into_arrays(tmp_path, name):
    batch = Spectrum([[1, 2, 3], [4, 5, 6]], [0, 1, 2, 4])
    same(read(write(batch, tmp_path / name), [0, 1, 2, 4]), batch)


@pytest.mark.parametrize("name", ["h.csv", "h.root:h"])
def test_batches_are_refused_where_one_spectrum_fits(tmp_path, name):
    batch = Spectrum([[1, 2, 3], [4, 5, 6]], [0, 1, 2, 4])
    with pytest.raises(InputError, match=r"holds one spectrum, a batch of 2 came; write .npy or .npz"):
        write(batch, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_root_file_keeps_what_it_held(root_file, weighted):
    with uproot.open(root_file) as file:
        before = file.classnames()
        values = {name: file[name].values() for name in ("weighted", "region/plain", "plain;1", "plain;2")}
    write(weighted, f"{root_file}:fit/background")
    write(weighted, f"{root_file}:region/more")
    write(weighted, f"{root_file}:plain")
    with uproot.open(root_file) as file:
        assert before.items() <= file.classnames().items()
        assert set(file.classnames()) - set(before) == {"fit;1", "fit/background;1", "region/more;1", "plain;3"}
        for name, old in values.items():
            np.testing.assert_array_equal(file[name].values(), old)
        assert file["note"] == "kept"
        np.testing.assert_array_equal(file["region/tree"]["x"].array(library="np"), np.arange(10_000.0))
    same(read(f"{root_file}:plain"), weighted)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("", "name the histogram, without a cycle"),
        ("plain;1", "without a cycle"),
        ("region", "region in the file is a TDirectory; choose another name"),
        ("region/tree", "region/tree in the file is a TTree"),
        ("note", "note in the file is a TObjString"),
        ("weighted/h", "weighted in the file is a TH1D, not a folder"),
        ("region/tree/h", "region/tree in the file is a TTree, not a folder"),
    ],
)
def test_a_root_file_is_not_overwritten_in_part(root_file, weighted, inside, message):
    before = root_file.read_bytes()
    with pytest.raises(InputError, match=f"many.root.*{message}"):
        write(weighted, f"{root_file}:{inside}")
    assert root_file.read_bytes() == before


def test_a_root_file_that_would_lose_something_stays_as_it_is(root_file, weighted, monkeypatch):
    class Forgetful:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            return {}

        def __exit__(self, *_):
            with uproot.recreate(self.path) as file:
                file["new"] = (COUNTS, EDGES)

    before = root_file.read_bytes()
    monkeypatch.setattr(uproot, "update", Forgetful)
    with pytest.raises(InputError, match="cannot add to this file without losing weighted;1; nothing was changed"):
        write(weighted, f"{root_file}:new")
    assert root_file.read_bytes() == before
    assert list(root_file.parent.iterdir()) == [root_file]


def test_a_damaged_root_file_is_not_overwritten(tmp_path, weighted):
    path = tmp_path / "h.root"
    path.write_bytes(b"root" + b"\x00" * 500)
    with pytest.raises(InputError, match="uproot cannot add to this file"):
        write(weighted, f"{path}:h")
    assert path.read_bytes() == b"root" + b"\x00" * 500


@pytest.mark.parametrize("name", EVERY_ENDING)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, weighted, name, monkeypatch):
    file = tmp_path / name.partition(":")[0]
    write(weighted, tmp_path / name)
    before = file.read_bytes()

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match=rf"{file.name}: cannot be written \(No space left on device\)"):
        write(weighted, tmp_path / name)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", EVERY_ENDING)
def test_folders_that_cannot_be_written(tmp_path, weighted, name):
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist; create it first"):
        write(weighted, tmp_path / "missing" / name)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        write(weighted, tmp_path / "file" / name)
    (tmp_path / name.partition(":")[0]).mkdir()
    with pytest.raises(IsADirectoryError, match="this is a folder; add a file name"):
        write(weighted, tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_json_has_no_number_that_is_not_finite(tmp_path, value):
    content = {"a": [1, (2.5, {"b": value})], "c": "text", "d": True, "e": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", content)
    assert list(tmp_path.iterdir()) == []
    plain = {"a": [1, [2.5, {"b": None}]], "c": "text", "d": True, "e": None}
    assert json.loads(write_json(tmp_path / "x.json", finite_or_none(content)).read_text()) == plain


def test_permissions_are_named(tmp_path, weighted):
    path = write(weighted, tmp_path / "h.npz")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read and write everything")
    with pytest.raises(PermissionError, match=r"h.npz: this file may not be read"):
        read(path)
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"new.csv: cannot be written \(Permission denied\)"):
        write(weighted, tmp_path / "new.csv")
    tmp_path.chmod(0o700)


def test_a_replaced_file_keeps_its_permissions_and_its_links(tmp_path, weighted):
    path, link = write(weighted, tmp_path / "h.npz"), tmp_path / "link.npz"
    path.chmod(0o640)
    link.symlink_to(path)
    same(read(write(Spectrum(COUNTS, EDGES), link)), Spectrum(COUNTS, EDGES))
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    fresh = write(weighted, tmp_path / "fresh.csv")
    (tmp_path / "ordinary").touch()
    assert fresh.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("name", ["h.parquet", "h", "h.txt", "h.root.gz"])
def test_unknown_endings_list_the_known(tmp_path, weighted, name):
    with pytest.raises(InputError, match=r"the ending '.*' is not known; .npy, .npz, .csv, .root can be written"):
        write(weighted, tmp_path / name)


# The kind that came


def test_to_hist_is_what_hist_makes(weighted):
    made = to_hist(weighted)
    assert isinstance(made, hist.Hist)
    assert type(made.axes[0]) is hist.axis.Variable
    np.testing.assert_array_equal(made.axes[0].edges, EDGES)
    np.testing.assert_array_equal(made.values(flow=True), [0, *COUNTS, 0])
    np.testing.assert_array_equal(made.variances(flow=True), [0, *VARIANCES, 0])
    plain = to_hist(Spectrum(COUNTS, np.arange(5) * 0.1))
    assert type(plain.axes[0]) is hist.axis.Regular
    np.testing.assert_array_equal(plain.axes[0].edges, hist.axis.Regular(4, 0, 0.4).edges)
    nearly = np.array([0, 1, 2, 3 + 1e-6, 4])
    np.testing.assert_array_equal(to_hist(Spectrum(COUNTS, nearly)).axes[0].edges, nearly)
    assert plain.storage_type is hist.storage.Double
    np.testing.assert_array_equal(plain.variances(), COUNTS)
    with pytest.raises(InputError, match="a batch of 2 spectra came"):
        to_hist(Spectrum([[1, 2], [3, 4]], [0, 1, 2]))


AXES = [
    hist.axis.Variable(EDGES, name="mass", label="m [GeV]"),
    hist.axis.Regular(4, 0, 1, name="x", flow=False),
    hist.axis.Integer(0, 4, name="i"),
]


@pytest.mark.parametrize("axis", AXES, ids=["variable", "regular", "integer"])
@pytest.mark.parametrize("storage", [hist.storage.Weight(), hist.storage.Double(), hist.storage.Int64()])
def test_a_hist_comes_back_as_a_hist(axis, storage, weighted):
    source = hist.Hist(axis, storage=storage, name="data", label="Data")
    source.fill([0, 0, 77])
    back = like(source, weighted)
    assert type(back) is hist.Hist
    assert (back.name, back.label) == ("data", "Data")
    assert back.axes[0] == axis
    assert (back.axes[0].name, back.axes[0].label) == (axis.name, axis.label)
    np.testing.assert_array_equal(back.values(), COUNTS)
    np.testing.assert_array_equal(back.variances(), VARIANCES)
    assert back.sum(flow=True).value == COUNTS.sum()
    assert source.values().sum() >= 1  # the source was not touched
    poisson = like(source, Spectrum(COUNTS, EDGES))
    np.testing.assert_array_equal(poisson.variances(), COUNTS)


def test_other_histograms_come_back(weighted, root_file):
    source = bh.Histogram(bh.axis.Variable(EDGES))
    back = like(source, weighted)
    assert type(back) is bh.Histogram
    np.testing.assert_array_equal(back.variances(), VARIANCES)
    assert type(like(hist.NamedHist(AXES[0]), weighted)) is hist.NamedHist
    with uproot.open(root_file) as file:
        from_root = like(file["weighted"], weighted)
    assert type(from_root) is hist.Hist
    np.testing.assert_array_equal(from_root.values(), COUNTS)
    with pytest.raises(InputError, match="spectrum: 4 bins came, the histogram has 3"):
        like(bh.Histogram(bh.axis.Regular(3, 0, 1)), weighted)


def test_arrays_come_back_as_arrays(weighted):
    for source in (COUNTS, COUNTS.astype(int), COUNTS.tolist(), tuple(COUNTS)):
        back = like(source, weighted)
        assert isinstance(back, np.ndarray)
        np.testing.assert_array_equal(back, COUNTS)
    back = like(torch.tensor(COUNTS, dtype=torch.float32), weighted)
    assert isinstance(back, torch.Tensor)
    assert torch.equal(back, weighted.counts)
    counts, edges = like((COUNTS, torch.tensor(EDGES)), weighted)
    assert isinstance(counts, np.ndarray)
    assert torch.equal(edges, weighted.edges)
    assert [part.tolist() for part in like((COUNTS, EDGES, VARIANCES), weighted)] == [
        COUNTS.tolist(),
        EDGES.tolist(),
        VARIANCES.tolist(),
    ]
    assert like("h.npy", weighted) is weighted
    assert like(weighted, weighted) is weighted


def test_reading_arrays_loads_no_histogram_package():
    code = (
        "import sys; from specfit.io import read, parse_edges; read([1, 2], parse_edges('0:2:2'));"
        "print([m for m in ('uproot', 'hist', 'boost_histogram', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
