def pytest_addoption(parser):
    parser.addoption(
        "--golden-update",
        action="store_true",
        help="write tests/support/golden/v1 anew; read the docstring of tests/protocol/test_golden.py first",
    )
