"""The JSON reference page matches the schemas."""

from tests.cli.json_reference import PAGE, page


def test_the_page_is_made_from_the_schemas() -> None:
    made = page()
    assert PAGE.read_text(encoding="utf-8") == made, "run `python -m tests.cli.reference`"
    for part in ("`frames_out`", "`first_frame_s`", "`done`", "`exit_code`", "events.json"):
        assert part in made
