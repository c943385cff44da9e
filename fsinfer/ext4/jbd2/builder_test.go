package jbd2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// journal writes a journal as the kernel does, and keeps what lies on its disk.
type journal struct {
	sb   Super
	f    Format
	disk [][]byte
	head uint32 // where the next transaction begins
	tid  uint32 // of the next transaction
}

type write struct {
	index uint32
	data  []byte
}

// newJournal makes an empty journal. log is how many blocks the log has, behind the superblock.
func newJournal(blockSize, log uint32, compat, incompat uint32) *journal {
	j := &journal{tid: 1, head: 1}
	j.sb = Super{Version: 2, BlockSize: blockSize, MaxLen: log + 1, First: 1, Sequence: 1, Users: 1,
		Compat: compat, Incompat: incompat, UUID: [16]byte{1, 2, 3, 15: 9}}
	if incompat&(IncompatCsumV2|IncompatCsumV3) != 0 {
		j.sb.ChecksumType = checksumCRC32C
	}
	if incompat&IncompatFastCommit != 0 {
		j.sb.FCBlocks = 16
		j.sb.MaxLen += 16
	}
	j.f = j.sb.Format()
	j.disk = make([][]byte, j.sb.MaxLen)
	for i := range j.disk {
		j.disk[i] = make([]byte, blockSize)
	}
	j.super()
	return j
}

// read is the disk for a Stream or a Recover.
func (j *journal) read(p []byte, index uint32) error {
	if int(index) >= len(j.disk) {
		return fmt.Errorf("no block %d", index)
	}
	copy(p, j.disk[index])
	return nil
}

func (j *journal) apply(ws []write) {
	for _, w := range ws {
		j.disk[w.index] = w.data
	}
}

// super writes the superblock.
func (j *journal) super() write {
	w := write{0, encodeSuper(&j.sb)}
	j.disk[0] = w.data
	return w
}

func encodeSuper(sb *Super) []byte {
	b := make([]byte, sb.BlockSize)
	be := binary.BigEndian
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], 4)
	for i, v := range []uint32{sb.BlockSize, sb.MaxLen, sb.First, sb.Sequence, sb.Start, uint32(sb.Errno), sb.Compat, sb.Incompat, sb.ROCompat} {
		be.PutUint32(b[12+4*i:], v)
	}
	copy(b[48:], sb.UUID[:])
	be.PutUint32(b[64:], sb.Users)
	b[0x50] = sb.ChecksumType
	be.PutUint32(b[0x54:], sb.FCBlocks)
	if sb.Incompat&(IncompatCsumV2|IncompatCsumV3) != 0 {
		be.PutUint32(b[0xFC:], crc32c(^uint32(0), b[:SuperSize]))
	}
	return b
}

func (j *journal) metadata(kind Kind, tid uint32) []byte {
	b := make([]byte, j.f.BlockSize)
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], uint32(kind))
	binary.BigEndian.PutUint32(b[8:], tid)
	return b
}

func (j *journal) seal(b []byte) []byte {
	if j.f.Csum >= 2 {
		end := len(b) - 4
		binary.BigEndian.PutUint32(b[end:], 0)
		binary.BigEndian.PutUint32(b[end:], crc32c(j.f.Seed, b))
	}
	return b
}

// crcTable is of the polynomial 0x04c11db7, most significant bit first.
var crcTable = func() (t [256]uint32) {
	for i := range t {
		crc := uint32(i) << 24
		for range 8 {
			high := crc >> 31
			crc = crc<<1 ^ 0x04c11db7*high
		}
		t[i] = crc
	}
	return t
}()

// crcBytes is crc32_be() of the kernel, byte by byte.
func crcBytes(crc uint32, p []byte) uint32 {
	for _, c := range p {
		crc = crc<<8 ^ crcTable[byte(crc>>24)^c]
	}
	return crc
}

// write lays a transaction down: revoke blocks, then descriptors of at most perDesc tags with their data, then the commit
// block. Nothing reaches the disk yet. The journal goes on behind it.
func (j *journal) write(tx *Tx, perDesc int) []write {
	var ws []write
	put := func(b []byte) uint32 {
		i := j.head
		ws = append(ws, write{i, b})
		j.head = after(j.head, j.sb.First, j.sb.LogEnd())
		return i
	}
	be := binary.BigEndian
	end := j.f.BlockSize
	if j.f.Csum >= 2 {
		end -= 4
	}
	sum := ^uint32(0)
	for left := tx.Revoked; len(left) > 0; {
		b, off := j.metadata(Revoke, tx.TID), 16
		for ; len(left) > 0 && off+8 <= end; left = left[1:] {
			if j.f.Wide {
				be.PutUint64(b[off:], left[0])
				off += 8
			} else {
				be.PutUint32(b[off:], uint32(left[0]))
				off += 4
			}
		}
		be.PutUint32(b[12:], uint32(off))
		put(j.seal(b))
	}
	size := j.f.TagSize()
	perDesc = min(perDesc, (end-headerSize-16)/size)
	for left := tx.Blocks; len(left) > 0; {
		n := min(perDesc, len(left))
		b, off := j.metadata(Descriptor, tx.TID), headerSize
		var data [][]byte
		for k := range n {
			l := left[k]
			d := bytes.Clone(l.Data)
			flags := uint16(0)
			if be.Uint32(d) == magic {
				flags |= flagEscape
				be.PutUint32(d, 0)
			}
			if k > 0 {
				flags |= flagSameUUID
			}
			if k == n-1 {
				flags |= flagLast
			}
			be.PutUint32(b[off:], uint32(l.Block))
			if j.f.Wide {
				be.PutUint32(b[off+8:], uint32(l.Block>>32))
			}
			crc := crc32c(crc32c(j.f.Seed, be.AppendUint32(nil, tx.TID)), d)
			switch j.f.Csum {
			case 2:
				be.PutUint16(b[off+4:], uint16(crc))
			case 3:
				be.PutUint32(b[off+12:], crc)
			}
			be.PutUint16(b[off+6:], flags)
			off += size
			if flags&flagSameUUID == 0 {
				copy(b[off:], j.sb.UUID[:])
				off += 16
			}
			data = append(data, d)
		}
		put(j.seal(b))
		if j.f.Csum == 1 {
			sum = crcBytes(sum, b)
		}
		for k, d := range data {
			if j.f.Csum == 1 {
				sum = crcBytes(sum, d)
			}
			left[k].Index = put(d)
		}
		left = left[n:]
	}
	b := j.metadata(Commit, tx.TID)
	be.PutUint64(b[48:], uint64(tx.Time.Unix()))
	be.PutUint32(b[56:], uint32(tx.Time.Nanosecond()))
	switch j.f.Csum {
	case 1:
		b[12], b[13] = 1, 4
		be.PutUint32(b[16:], sum)
	case 2, 3:
		be.PutUint32(b[16:], crc32c(j.f.Seed, b))
	}
	put(b)
	return ws
}

// random makes the next transaction: up to n blocks of the file system's first space ones.
func (j *journal) random(r *rand.Rand, n, space int) *Tx {
	tx := &Tx{TID: j.tid, Time: time.Unix(1700000000+int64(j.tid), int64(r.IntN(1e9))).UTC()}
	j.tid++
	high := uint64(0)
	if j.f.Wide {
		high = 5 << 32
	}
	blocks := r.Perm(space)[:1+r.IntN(n)]
	for i, b := range blocks {
		if r.IntN(8) == 0 {
			tx.Revoked = append(tx.Revoked, high|uint64(b))
			continue
		}
		d := make([]byte, j.f.BlockSize)
		for k := 0; k < len(d); k += 8 {
			binary.LittleEndian.PutUint64(d[k:], r.Uint64())
		}
		if i%5 == 0 {
			binary.BigEndian.PutUint32(d, magic)
		}
		tx.Blocks = append(tx.Blocks, Logged{Block: high | uint64(b), Data: d})
	}
	return tx
}

// differ says where two transactions differ; empty if they do not.
func differ(got, want *Tx) string {
	switch {
	case got == nil:
		return "no transaction"
	case got.TID != want.TID:
		return fmt.Sprintf("tid %d, want %d", got.TID, want.TID)
	case !got.Time.Equal(want.Time):
		return fmt.Sprintf("time %v, want %v", got.Time, want.Time)
	case !slices.Equal(got.Revoked, want.Revoked):
		return fmt.Sprintf("revoked %v, want %v", got.Revoked, want.Revoked)
	case len(got.Blocks) != len(want.Blocks):
		return fmt.Sprintf("%d blocks, want %d", len(got.Blocks), len(want.Blocks))
	}
	for i, l := range got.Blocks {
		if w := want.Blocks[i]; l.Block != w.Block || l.Index != w.Index || !bytes.Equal(l.Data, w.Data) {
			return fmt.Sprintf("block %d: %d at %d, want %d at %d (content equal: %v)", i, l.Block, l.Index, w.Block, w.Index, bytes.Equal(l.Data, w.Data))
		}
	}
	return ""
}
