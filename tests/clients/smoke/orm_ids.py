"""Models whose ids nobody gives, as ORMs make, insert and read them:  orm_ids.py sqlalchemy|django PORT

Prints "ok" or "not ok" of each check.
"""

import sys
import uuid

PORT = int(sys.argv[2])


def check(name, act):
    try:
        act()
        print(f"ok {name}", flush=True)
    except Exception as problem:  # whatever it is, the check has failed
        print(f"not ok {name}", flush=True)
        print(f"{name}: {problem!r}", file=sys.stderr)


def with_sqlalchemy():
    import sqlalchemy as sa
    from sqlalchemy.orm import DeclarativeBase, Session

    class Base(DeclarativeBase):
        pass

    class Author(Base):
        __tablename__ = "author"
        id = sa.Column(sa.BigInteger, primary_key=True)
        name = sa.Column(sa.Text)

    class Book(Base):
        __tablename__ = "book"
        id = sa.Column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
        number = sa.Column(sa.BigInteger, sa.Sequence("book_numbers", metadata=Base.metadata), nullable=False)
        title = sa.Column(sa.Text)

    url = f"postgresql+psycopg2://postgres@127.0.0.1:{PORT}/ids"
    engine = sa.create_engine(url, use_insertmanyvalues=False)

    def made():
        Base.metadata.create_all(engine)

    def inserted():
        with Session(engine) as session:
            authors = [Author(name=f"a{n}") for n in range(200)]
            session.add_all(authors)
            session.flush()
            ids = [author.id for author in authors]
            assert ids == list(range(1, 201)), ids
            session.commit()
            for author in authors[::20]:
                assert session.get(Author, author.id).name == author.name

    def one_by_one():
        with Session(engine) as session:
            for n in range(20):
                author = Author(name="one")
                session.add(author)
                session.commit()
                assert author.id == 201 + n, author.id

    def several_at_once():
        with Session(engine) as session:
            books = [Book(title=f"b{n}") for n in range(50)]
            session.add_all(books)
            session.commit()
            assert sorted(book.id for book in books) == list(range(1, 51))
            assert sorted(book.number for book in books) == list(range(1, 51))
            found = session.scalars(sa.select(Book).order_by(Book.id)).all()
            assert [book.title for book in found] == [f"b{n}" for n in range(50)]

    def undone():
        with Session(engine) as session:
            session.add(Author(name="undone"))
            session.flush()
            session.rollback()
            assert session.scalar(sa.select(sa.func.count()).select_from(Author)) == 220

    def many_values():
        with Session(sa.create_engine(url)) as session:
            authors = [Author(name="many") for _ in range(20)]
            session.add_all(authors)
            session.commit()
            assert len({author.id for author in authors}) == 20

    check("create_all", made)
    check("many rows", inserted)
    check("one by one", one_by_one)
    check("identity and a sequence", several_at_once)
    check("rollback", undone)
    check("insertmanyvalues", many_values)


def with_django():
    import django
    from django.conf import settings
    from django.db import connection, models, transaction

    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "ids",
                "HOST": "127.0.0.1",
                "USER": "postgres",
                "PORT": PORT,
            }
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

    class Author(models.Model):
        name = models.TextField()

        class Meta:
            app_label = "ids"
            db_table = "author"

    class Book(models.Model):
        id = models.AutoField(primary_key=True)
        author = models.ForeignKey(Author, models.CASCADE, db_constraint=False)
        token = models.UUIDField(default=uuid.uuid4)

        class Meta:
            app_label = "ids"
            db_table = "book"

    def made():
        for model in (Author, Book):
            with connection.schema_editor() as editor:
                editor.create_model(model)

    def saved():
        for n in range(1, 31):
            author = Author.objects.create(name=f"a{n}")
            assert author.id == n, author.id
        assert Author.objects.get(id=7).name == "a7"

    def bulk():
        authors = Author.objects.bulk_create([Author(name="many") for _ in range(100)])
        assert len({author.id for author in authors}) == 100

    def related():
        with transaction.atomic():
            author = Author.objects.create(name="parent")
            books = [Book.objects.create(author=author) for _ in range(10)]
        assert sorted(Book.objects.filter(author=author).values_list("id", flat=True)) == [book.id for book in books]

    def undone():
        before = Author.objects.count()
        try:
            with transaction.atomic():
                Author.objects.create(name="undone")
                raise KeyError
        except KeyError:
            pass
        assert Author.objects.count() == before

    def found():
        author, made = Author.objects.get_or_create(name="parent")
        assert not made and author.name == "parent"

    check("create_model", made)
    check("save", saved)
    check("bulk_create", bulk)
    check("related in a transaction", related)
    check("rollback", undone)
    check("get_or_create", found)


{"sqlalchemy": with_sqlalchemy, "django": with_django}[sys.argv[1]]()
