"""An outcome as Markdown, HTML, CSV and a picture: what is printed of published numbers, of ours and of neither."""

import csv
import html
import io
import re

import numpy as np
import pytest
from matplotlib.image import imread
from pydantic import ValidationError

from umamba_seg import figures
from umamba_seg.reproduce.collect import collect
from umamba_seg.reproduce.outcome import Costs
from umamba_seg.reproduce.render import as_csv, as_html, as_markdown, as_picture
from umamba_seg.reproduce.runs import jobs_of

RNG = np.random.default_rng(0)
DICE, HD95 = RNG.uniform(0.7, 0.9, (12, 2)), RNG.uniform(1, 9, (12, 2))
SOURCES = {"sources": {"unused": "nobody", "survey": "a survey | Table 8", "repo": "the repository"}}


def number(value=None, status="official", source="repo", **more):
    return {"value": value, "status": status, "source": source} | more


PUBLISHED = {
    "nnU-Net": {"network": "plain_conv_unet", "published": {"dice": number(0.8683, "secondary", "survey", sd=0.08)}},
    "Bot": {"network": "umamba_bot", "published": {"dice": number(0.74), "hd95": number(6.5, "read-off-chart")}},
    "Other": {"published": {"dice": number(0.7, "inferred"), "hd95": number("OOM", "computed")}},
    "Unknown": {"published": {"dice": {"status": "unknown"}}},
}


@pytest.fixture
def outcome(paper, finish, folders):
    """``outcome(table, networks)`` is what comes of a table of which these networks were run."""

    def of(table, networks=(), costs=None):
        jobs = jobs_of(table, folders)
        for job in jobs:
            if job.network in networks:
                finish(job, dice=DICE, hd95=HD95)
        return collect(table, jobs, costs or {}, [])

    return of


def sheet(markdown, title):
    """Cells of a table by row and heading."""
    lines = markdown.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_published_beside_ours(paper, outcome):
    markdown = as_markdown(outcome(paper(PUBLISHED, table=SOURCES), ["plain_conv_unet"]))
    rows = sheet(markdown, "liver")
    mean = DICE.mean()
    ours = rows["nnU-Net"]
    assert ours["Dice published"] == "0.8683 ± 0.0800 (s1)"
    assert ours["Dice ours"] == f"{mean:.4f}"
    assert ours["Dice ours − published"] == f"{mean - 0.8683:+.4f}"
    assert re.fullmatch(r"0\.\d{4} to 0\.\d{4}", ours["Dice 95 % interval"])
    assert (ours["seeds"], ours["cases"]) == ("1", "12")
    assert ours["HD95 (mm) published"] == "–"
    assert ours["HD95 (mm) ours"] == f"{HD95.mean():.1f}"
    assert "HD95 (mm) ours − published" not in ours  # there is none in the whole column
    assert rows["Bot"] == {
        "method": "Bot",
        "Dice published": "0.7400 (o2)",
        "Dice ours": "not run",
        "Dice 95 % interval": "–",
        "Dice ours − published": "–",
        "HD95 (mm) published": "≈6.5 (r2)",
        "HD95 (mm) ours": "not run",
        "HD95 (mm) 95 % interval": "–",
        "seeds": "–",
        "cases": "–",
    }
    assert (rows["Other"]["Dice published"], rows["Other"]["HD95 (mm) published"]) == ("0.7000 (i2)", "OOM (c2)")
    assert rows["Other"]["Dice ours"] == "–"
    assert rows["Unknown"]["Dice published"] == "unknown"
    footer = markdown.partition("## What these numbers stand on")[2]
    assert "- source 1: a survey | Table 8\n- source 2: the repository\n" in footer
    assert "nobody" not in footer
    assert "s as a third party transcribed it; c computed from the official code; i from memory" in footer
    assert "- unknown: not found\n" in footer
    assert "is one of two tables, not a test" in footer


def test_a_number_without_a_source_cannot_be_built(paper):
    with pytest.raises(ValidationError, match=r"the published number 0\.87 has no source"):
        paper({"nnU-Net": {"published": {"dice": number(0.87, source=None)}}})
    with pytest.raises(ValidationError, match="the source elsewhere of nnU-Net, dice, is not among the sources"):
        paper({"nnU-Net": {"published": {"dice": number(0.87, source="elsewhere")}}}, table=SOURCES)


@pytest.mark.parametrize(
    ("values", "printed"),
    [((74.0, 73.98), ("74.00", "73.98")), ((74.0, 8.0), ("74", "8")), ((0.5, 1e-3), ("0.500", "0.001"))],
)
def test_published_numbers_have_the_decimals_of_their_column(paper, outcome, values, printed):
    rows = {str(row): {"published": {"dice": number(value)}} for row, value in enumerate(values)}
    found = sheet(as_markdown(outcome(paper(rows, table=SOURCES))), "liver")
    assert tuple(row["Dice published"] for row in found.values()) == tuple(f"{text} (o1)" for text in printed)


def test_ours_in_the_unit_of_the_paper(paper, outcome):
    columns = [{"name": "dice", "title": "Dice", "dataset": "liver", "metric": "dice", "scale": 100}]
    rows = {"nnU-Net": {"network": "plain_conv_unet", "published": {"dice": number(91.5)}}, "Bot": "umamba_bot"}
    table = paper(rows, columns, table=SOURCES)
    row = sheet(as_markdown(outcome(table, ["plain_conv_unet"])), "liver")["nnU-Net"]
    assert row["Dice ours"] == f"{100 * DICE.mean():.1f}"
    assert row["Dice ours − published"] == f"{100 * DICE.mean() - 91.5:+.1f}"


def test_our_own_table_has_no_published_columns(paper, outcome):
    rows = sheet(as_markdown(outcome(paper({"Bot": "umamba_bot"}), ["umamba_bot"])), "liver")
    assert list(rows["Bot"]) == [
        *("method", "Dice", "Dice 95 % interval", "HD95 (mm)", "HD95 (mm) 95 % interval", "seeds", "cases")
    ]
    assert (rows["Bot"]["Dice"], rows["Bot"]["HD95 (mm)"]) == (f"{DICE.mean():.3f}", f"{HD95.mean():.2f}")


def test_what_is_undefined_says_so(paper, finish, folders):
    table = paper({"Bot": "umamba_bot"})
    (job,) = jobs_of(table, folders)
    finish(job, dice=np.full((3, 2), np.nan), hd95=HD95[:3])
    row = sheet(as_markdown(collect(table, [job], {}, [])), "liver")["Bot"]
    assert (row["Dice"], row.get("Dice 95 % interval", "–")) == ("undefined", "–")


def test_several_seeds_have_a_spread(paper, outcome):
    found = outcome(paper({"Bot": "umamba_bot"}, seeds=(0, 1)), ["umamba_bot"])
    row = sheet(as_markdown(found), "liver")["Bot"]
    assert (row["Dice sd of seeds"], row["seeds"]) == ("0.000", "2")


COSTS = {
    (row, "liver"): Costs(
        1_500_000 * (row + 1), 30_000_000_000, 2**31, seconds, machine, "patch 40×56×40, batch 4, planned"
    )
    for row, (seconds, machine) in enumerate(((0.25, "a CPU, 2 threads"), (None, "")))
}
COLUMNS = [
    {"name": "dice", "title": "Dice", "dataset": "liver", "metric": "dice"},
    {"name": "size", "title": "Size (M)", "dataset": "liver", "cost": "parameters", "scale": 1e-6},
    {"name": "time", "title": "Time (s)", "dataset": "liver", "cost": "seconds"},
    {"name": "theirs", "title": "Hours"},
]


def test_costs_are_there_without_data(paper, outcome):
    rows = {
        "nnU-Net": {"network": "plain_conv_unet", "published": {"dice": number(0.8), "size": number(31.2)}},
        "Bot": {"network": "umamba_bot", "published": {"theirs": number(20.0)}},
    }
    markdown = as_markdown(outcome(paper(rows, COLUMNS, table=SOURCES), costs=COSTS))
    found = sheet(markdown, "liver")
    assert found["nnU-Net"] == {
        "method": "nnU-Net",
        "Dice published": "0.8 (o1)",
        "Dice ours": "not run",
        "Size (M) published": "31.2 (o1)",
        "Size (M) ours": "1.5",
        "Size (M) ours − published": "-29.7",
        "Time (s)": "0.250",
    }
    assert found["Bot"]["Time (s)"] == "not measured"
    assert sheet(markdown, "Columns of the paper alone") == {"Bot": {"method": "Bot", "Hours published": "20 (o1)"}}
    costs = sheet(markdown, "Costs on liver")
    assert costs["Bot"] == {
        "method": "Bot",
        "parameters (M)": "3.00",
        "multiply-adds (G)": "30.0",
        "memory of a training step (GiB)": "2.00",
        "seconds per iteration": "not measured",
    }
    assert "\n\npatch 40×56×40, batch 4, planned\n\n" in markdown
    assert markdown.count("measured for this table on a CPU, 2 threads") == 1


def test_networks_beside_each_other(paper, finish, folders):
    table = paper({"Bot": "umamba_bot", "Bot without the scan": "umamba_bot_noscan"})
    jobs = jobs_of(table, folders)
    finish(jobs[0], dice=DICE, hd95=HD95)
    finish(jobs[1], dice=DICE - 0.01, hd95=HD95)
    found = collect(table, jobs, COSTS, [])
    markdown = as_markdown(found)
    row = sheet(markdown, "Networks beside each other")["Bot without the scan − Bot"]
    assert row["difference"] == "-0.010"
    assert row["won/tied/lost"] == "0/0/12"
    assert row["Holm's p"] == "< 0.001"
    assert (row["parameters"], row["time"]) == ("×2.00", "–")
    assert all(f"- {answer}\n" in markdown for answer in found.answers)


def test_html_has_the_same_text_and_the_sources_as_tooltips(paper, outcome):
    found = outcome(paper(PUBLISHED, table=SOURCES), ["plain_conv_unet", "umamba_bot"], COSTS)
    page = as_html(found, as_picture(found))
    cells = [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", page)]
    for name in ("liver", "Costs on liver"):
        for row in sheet(as_markdown(found), name).values():
            assert set(row.values()) <= set(cells)
    assert 'title="as a third party transcribed it: a survey | Table 8"' in page
    assert all(
        html.escape(line, quote=False) in page.replace("&#39;", "'").replace("&#34;", '"') for line in found.footer
    )
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page


def test_the_csv_holds_every_number(paper, outcome):
    found = outcome(paper(PUBLISHED, table=SOURCES), ["plain_conv_unet"], COSTS)
    lines = {(line["method"], line["column"]): line for line in csv.DictReader(io.StringIO(as_csv(found)))}
    assert len(lines) == 8
    line = lines["nnU-Net", "Dice"]
    cell = found.cells[0, "dice"]
    for name, value in {
        "ours": cell.value,
        "low": cell.low,
        "high": cell.high,
        "difference": cell.value - 0.8683,
    }.items():
        assert float(line[name]) == pytest.approx(value, rel=1e-5)
    wanted = {
        "table": "made",
        "network": "plain_conv_unet",
        "dataset": "Dataset901_Tiny",
        "metric": "dice",
        "published": "0.8683",
        "published_sd": "0.08",
        "status": "secondary",
        "source": "a survey | Table 8",
        "spread": "",
        "seeds": "0",
        "cases": "12",
        "protocol": "nnunet",
        "folds": "0",
        "scored": "validation",
        "split_sha256": found.splits["liver"],
        "budget": "cpu",
        "recipe": "",
        "epochs": "6",
        "parameters": "1500000",
        "training_bytes": str(2**31),
        "seconds": "0.25",
    }
    assert {name: line[name] for name in wanted} == wanted
    assert lines["Bot", "Dice"]["ours"] == lines["Bot", "Dice"]["epochs"] == ""
    assert lines["Other", "HD95 (mm)"]["published"] == "OOM"
    assert as_csv(found) == as_csv(found)


def test_the_picture_has_the_width_of_a_readme(paper, outcome):
    picture = imread(io.BytesIO(as_picture(outcome(paper(PUBLISHED, table=SOURCES), ["plain_conv_unet"])) or b""))
    assert picture.shape[1] == 900
    assert as_picture(outcome(paper({"Segmamba": "segmamba"}))) is None


def test_what_the_picture_shows(paper, outcome, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "dots", lambda panels: shown.extend(panels) or b"")
    as_picture(outcome(paper(PUBLISHED, table=SOURCES), ["plain_conv_unet"]))
    assert [(panel.title, panel.better) for panel in shown] == [("Dice", "better →"), ("HD95 (mm)", "← better")]
    dice, hd95 = (panel.rows for panel in shown)
    assert [dot.name for dot in dice] == [dot.name for dot in hd95] == list(PUBLISHED)
    assert (dice[0].value, dice[0].published) == pytest.approx((DICE.mean(), 0.8683))
    assert np.isnan(dice[1].value)
    assert np.isnan(hd95[2].published)
    assert not any(dot.light for dot in dice)
