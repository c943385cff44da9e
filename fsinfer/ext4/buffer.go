package ext4

import "sync"

// buffers hold scratch blocks of all sizes, by the logarithm of their size.
var buffers [17]sync.Pool

// buffer is a block to read into for a moment.
type buffer struct {
	b    []byte
	bits uint8
}

// buffer gives a scratch block; its content is anything.
func (s *Super) buffer() *buffer {
	if p, ok := buffers[s.blockBits].Get().(*buffer); ok {
		return p
	}
	return &buffer{b: make([]byte, s.BlockSize), bits: s.blockBits}
}

func (b *buffer) free() { buffers[b.bits].Put(b) }
