"""What is damaged is kept, whatever has its name already."""

from flamingo_jax.checkpoint import damaged


def test_each_gets_a_name_of_its_own(tmp_path):
    (tmp_path / "damaged").mkdir()
    names = ["4", *(f"4-{number}" for number in range(2, 1001))]
    for name in names[:-1]:
        (tmp_path / "damaged" / name).touch()
    (tmp_path / "damaged" / names[-1]).symlink_to("/nothing")
    (tmp_path / "4").write_text("a")
    kept = damaged.set_aside(tmp_path / "4", tmp_path)
    assert kept.name == "4-1001" and kept.read_text() == "a"
    assert len(list((tmp_path / "damaged").iterdir())) == 1001
