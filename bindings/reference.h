/*
 * What DPDK's own software makes of a frame, which the tests compare with what ringspan makes of it: segments by rte_gso, checksums by
 * rte_net. Nothing of this is on the way of a packet; see docs/decisions/0007.
 */
#ifndef RINGSPAN_DPDK_REFERENCE_H
#define RINGSPAN_DPDK_REFERENCE_H

#include <stdint.h>

#include <rte_mempool.h>

/* Where the parts of a frame are. */
struct shim_reference_frame {
	/* Bytes of Ethernet, of IP and of TCP or UDP header. */
	uint16_t l2_len, l3_len, l4_len;
	uint8_t ipv6, udp;
};

/*
 * Has rte_gso cut a frame into packets of up to size bytes, headers included, and rte_net complete their checksums. They are written to
 * `packets` one behind the other, with their lengths to `lengths`, which has room for `most`. How many they are; 0 when rte_gso left the frame
 * as it is; a negative errno.
 */
int shim_reference_gso(struct rte_mempool *pool, const uint8_t *frame, uint16_t length, const struct shim_reference_frame *parts,
		       uint16_t size, uint8_t *packets, uint16_t *lengths, uint16_t most);

/* Whether rte_net finds the checksums of IPv4, and of TCP or UDP, right. The IPv6 packet has no extension headers. */
int shim_reference_verify(const uint8_t *frame, const struct shim_reference_frame *parts);

#endif
