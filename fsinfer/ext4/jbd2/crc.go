package jbd2

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// crcBE goes on with the kernel's crc32_be() over p: the polynomial of IEEE 802.3, most significant bit first. The
// processor has instructions for the other order only, so the bits are turned around: of each byte, and of the sum.
func (w *walk) crcBE(crc uint32, p []byte) uint32 {
	if len(w.rev) < len(p) {
		w.rev = make([]byte, len(p))
	}
	rev := w.rev[:len(p)]
	i := 0
	for ; i+8 <= len(p); i += 8 {
		// Reverse64 turns the order of the bytes, too; reading one way and writing the other undoes that.
		binary.BigEndian.PutUint64(rev[i:], bits.Reverse64(binary.LittleEndian.Uint64(p[i:])))
	}
	for ; i < len(p); i++ {
		rev[i] = bits.Reverse8(p[i])
	}
	return bits.Reverse32(^crc32.Update(^bits.Reverse32(crc), crc32.IEEETable, rev))
}
