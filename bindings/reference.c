/* Experimental in DPDK 22.11: rte_ipv4_udptcp_cksum_verify and its sibling, which are inline. */
#define ALLOW_EXPERIMENTAL_API

#include "reference.h"

#include <errno.h>
#include <string.h>

#include <rte_ethdev.h>
#include <rte_gso.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_tcp.h>
#include <rte_udp.h>

/* Most packets of a frame here. */
#define MOST 64

static void complete(uint8_t *packet, const struct shim_reference_frame *parts)
{
	struct rte_ipv4_hdr *ip = (void *)(packet + parts->l2_len);
	void *l4 = packet + parts->l2_len + parts->l3_len;

	ip->hdr_checksum = 0;
	ip->hdr_checksum = rte_ipv4_cksum(ip);
	if (parts->udp)
		return; /* Fragments, whose checksum is that of the whole. */
	((struct rte_tcp_hdr *)l4)->cksum = 0;
	((struct rte_tcp_hdr *)l4)->cksum = rte_ipv4_udptcp_cksum(ip, l4);
}

int shim_reference_gso(struct rte_mempool *pool, const uint8_t *frame, uint16_t length, const struct shim_reference_frame *parts,
		       uint16_t size, uint8_t *packets, uint16_t *lengths, uint16_t most)
{
	struct rte_gso_ctx context = {
		.direct_pool = pool,
		.indirect_pool = pool,
		.gso_types = RTE_ETH_TX_OFFLOAD_TCP_TSO | RTE_ETH_TX_OFFLOAD_UDP_TSO,
		.gso_size = size,
	};
	struct rte_mbuf *packet = rte_pktmbuf_alloc(pool), *cut[MOST];
	char *data = packet != NULL ? rte_pktmbuf_append(packet, length) : NULL;
	int count;

	if (data == NULL) {
		rte_pktmbuf_free(packet);
		return -ENOMEM;
	}
	memcpy(data, frame, length);
	packet->l2_len = parts->l2_len;
	packet->l3_len = parts->l3_len;
	packet->l4_len = parts->l4_len;
	packet->ol_flags |= parts->ipv6 ? RTE_MBUF_F_TX_IPV6 : RTE_MBUF_F_TX_IPV4;
	packet->ol_flags |= parts->udp ? RTE_MBUF_F_TX_UDP_SEG : RTE_MBUF_F_TX_TCP_SEG;
	count = rte_gso_segment(packet, &context, cut, most < MOST ? most : MOST);
	for (int i = 0; i < count; i++) {
		lengths[i] = rte_pktmbuf_pkt_len(cut[i]);
		for (struct rte_mbuf *part = cut[i]; part != NULL; part = part->next) {
			memcpy(packets, rte_pktmbuf_mtod(part, void *), part->data_len);
			packets += part->data_len;
		}
		complete(packets - lengths[i], parts);
		rte_pktmbuf_free(cut[i]);
	}
	rte_pktmbuf_free(packet);
	return count;
}

int shim_reference_verify(const uint8_t *frame, const struct shim_reference_frame *parts)
{
	const void *ip = frame + parts->l2_len, *l4 = frame + parts->l2_len + parts->l3_len;

	if (parts->ipv6)
		return rte_ipv6_udptcp_cksum_verify(ip, l4) == 0;
	return rte_raw_cksum(ip, parts->l3_len) == 0xffff && rte_ipv4_udptcp_cksum_verify(ip, l4) == 0;
}
