"""The payload room: calls, results and exceptions as bytes.

Pickles, seals, and says what cannot be pickled. Never sees Redis, and knows no ledger, client or worker. The client
holds an `Encoder`, each worker a `Decoder`.

```
 client                            bytes in the ledger                worker
 encode_function -> body ........................................ -> fetch     \
 encode_call --------> flags [seal] function pickle buffers -------> decode_call  -> fn(*args, **kwargs)
 decode_outcome <----- flags [seal] pickle buffers <---------------- encode_result
 decode_failure <----- flags [seal] text, exceptions <-------------- encode_failure
```

Modules, each above what it uses: `encoder`, `decoder` > `bodies`, `function_store`, `outcome`, `failure`, `loading`,
`function` > `envelope`, `exceptions`, `unpickler`, `culprit` > `arrivals` > `fingerprint`, `space`, `versions` >
`pickler` > `reference`, `scattered`, `content`, `compression`, `cached`, `arrays`, `tracebacks`, `scalars`, `lru`,
`wire`, `chunk`.
"""

from __future__ import annotations

from rush_executor._payload.bodies import read_place_of_chunks
from rush_executor._payload.chunk import ChunkResult, run_chunk
from rush_executor._payload.compression import decompress
from rush_executor._payload.content import (
    ContentElsewhereError,
    ContentFile,
    ContentFiles,
    ContentInMemory,
    OwnFiles,
    Piece,
)
from rush_executor._payload.decoder import Call, Decoder
from rush_executor._payload.encoder import Encoder
from rush_executor._payload.function import EncodedFunction
from rush_executor._payload.scattered import RushReference

__all__ = [
    "Call",
    "ChunkResult",
    "ContentElsewhereError",
    "ContentFile",
    "ContentFiles",
    "ContentInMemory",
    "Decoder",
    "EncodedFunction",
    "Encoder",
    "OwnFiles",
    "Piece",
    "RushReference",
    "decompress",
    "read_place_of_chunks",
    "run_chunk",
]
