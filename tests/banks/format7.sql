PRAGMA application_id = 1296385857;
PRAGMA user_version = 7;
BEGIN TRANSACTION;
CREATE TABLE base (sha256 TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, gguf TEXT NOT NULL, hf TEXT);
INSERT INTO "base" VALUES('abababababababababababababababababababababababababababababababab','base','/models/base.gguf','/models/base.gguf',NULL);
CREATE TABLE counter (revision INTEGER NOT NULL);
INSERT INTO "counter" VALUES(7);
CREATE TABLE evidence (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, words BLOB NOT NULL, tokens BLOB NOT NULL);
INSERT INTO "evidence" VALUES(1,X'070000000800000000000000',X'01FF0000');
INSERT INTO "evidence" VALUES(2,X'070000000800000000000000',X'01FF0000');
INSERT INTO "evidence" VALUES(3,X'070000000800000000000000',X'01FF0000');
CREATE TABLE key (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, vector BLOB NOT NULL);
INSERT INTO "key" VALUES(1,X'000000000000803F0000004000004040');
INSERT INTO "key" VALUES(2,X'0000803F000000400000404000008040');
INSERT INTO "key" VALUES(3,X'0000004000004040000080400000A040');
CREATE TABLE memory (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE COLLATE NOCASE,
            title TEXT, text TEXT NOT NULL,
            paraphrases TEXT NOT NULL, questions TEXT NOT NULL, metadata TEXT NOT NULL,
            state TEXT NOT NULL, recipe TEXT, activated INTEGER NOT NULL, rank INTEGER NOT NULL,
            adapter_bytes INTEGER NOT NULL, adapter_sha256 TEXT,
            created_at TEXT NOT NULL, learnt_at TEXT, training TEXT NOT NULL,
            adapter_file TEXT
        );
INSERT INTO "memory" VALUES(1,'ada','Ada Quill','Ada Quill keeps bees.','["Bees are kept by Ada Quill."]','["What does Ada keep?"]','{"tags": ["bees"]}','learnt','fast',1,2,8,'8893147a7395c2ab9ee66d888b659679ab852cd889f3226e8343679599452c9e','2026-01-02T03:04:05Z','2026-01-02T03:05:00Z','{"steps": 9}','ada.gguf');
INSERT INTO "memory" VALUES(2,'mill',NULL,'The mill stands still.','[]','[]','{}','pending',NULL,0,0,0,NULL,'2026-01-02T03:04:05Z',NULL,'{}',NULL);
INSERT INTO "memory" VALUES(3,'suisha','水車','水車は止まっている。','[]','[]','{}','learnt','fast',1,2,11,'b943bd95ea99d1b676943b9b6a7a0ec2f2c92136104585bbc458c4e7c0604c22','2026-01-02T03:04:05Z','2026-01-02T03:05:00Z','{"steps": 9}','suisha.gguf');
CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL);
INSERT INTO "state" VALUES('whitening',X'0102');
INSERT INTO "state" VALUES('embedder',X'6535');
CREATE TABLE usage (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, opened INTEGER NOT NULL, last TEXT NOT NULL);
CREATE TABLE vector (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, embedder TEXT NOT NULL, vector BLOB NOT NULL);
INSERT INTO "vector" VALUES(1,'e5',X'0000803F0000803F0000803F');
INSERT INTO "vector" VALUES(2,'e5',X'0000803F0000803F0000803F');
INSERT INTO "vector" VALUES(3,'e5',X'0000803F0000803F0000803F');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('memory',3);
COMMIT;
