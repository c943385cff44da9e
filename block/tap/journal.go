package tap

import (
	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
)

// Journal tells a receiver of a journal (jbd2) on its disk, so that it captures pre-images.
type Journal struct {
	Format jbd2.Format
	// Disk is which of the legs' disks the tap's disk is.
	Disk int
	// Volume is where the file system's volume lies, as block.Map has it. Homes on other disks are not captured.
	Volume []block.Segment
	// Extents are the journal's blocks in the journal's order, in bytes of the volume.
	Extents []block.Range
}
