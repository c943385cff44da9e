package ext4

import (
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's crc32c(): it takes and gives the register itself, which the standard library inverts.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

// crc32c4 continues a checksum by a 32-bit number.
func crc32c4(crc, v uint32) uint32 {
	for range 4 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return crc
}

// crc16 is the kernel's crc16(), by which group descriptors were guarded before crc32c was.
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			crc = crc>>1 ^ 0xa001*(crc&1)
		}
	}
	return crc
}

// ChecksumError tells of metadata whose checksum is wrong: torn, or changed from outside. What was read is given
// nevertheless.
type ChecksumError struct {
	What  string
	Inode uint32 // 0: of no inode
	Block uint64 // 0: in no block of its own
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("ext4: %s: inode %d, block %d: wrong checksum", e.What, e.Inode, e.Block)
}
