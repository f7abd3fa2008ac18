from __future__ import annotations

from samfed_monai.data.sources.found import passed_over
from tests.data.making import disc, picture, save, site


def test_every_folder_with_images_somewhere_below_is_named_with_one_of_them(tmp_path):
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "hospital_c" / "img" / "deep" / "1.jpg", picture(1))
    save(tmp_path / "hospital_d" / "Images" / "1.png", picture(2))
    save(tmp_path / "hospital_e" / "2.png", picture(3))
    save(tmp_path / "hospital_e" / "1.png", picture(4))
    ending = "but no folder 'images', and was not read: if it is a site, move them to"
    assert passed_over(tmp_path, ["a"]) == [
        f"hospital_c holds images, such as hospital_c/img/deep/1.jpg, {ending} hospital_c/images",
        f"hospital_d holds images, such as hospital_d/Images/1.png, {ending} hospital_d/images",
        f"hospital_e holds images, such as hospital_e/1.png, {ending} hospital_e/images",
    ]


def test_masks_hidden_folders_the_output_and_runs_are_no_hospitals(tmp_path):
    site(tmp_path, "a", 1, 1)
    save(tmp_path / "masks" / "1.png", disc())
    save(tmp_path / ".cache" / "1.png", picture(1))
    save(tmp_path / "b" / "__MACOSX" / "1.png", picture(1))
    save(tmp_path / "b" / "._1.png", picture(1))
    save(tmp_path / "lists" / "figures" / "1.png", picture(1))
    save(tmp_path / "runs" / "first" / "overlays" / "1.png", picture(1))
    (tmp_path / "runs" / "first" / "run.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1.txt").write_text("")
    assert passed_over(tmp_path, ["a"], output=tmp_path / "lists" / "new" / "list.json") == []
    assert len(passed_over(tmp_path, ["a"])) == 1
